# One machine, CPU or one NVIDIA GPU. The page is reachable from outside the container, so it needs a login:
#   read -rs STEER_HEAL_LOGIN && export STEER_HEAL_LOGIN     (type name:password; it stays out of the history)
#   docker build -t steer-heal . && docker run -e STEER_HEAL_LOGIN -p 7860:7860 -v steer-heal:/data steer-heal
# or a mounted file: -e STEER_HEAL_LOGIN_FILE=/run/secrets/login.
# A real model, fetched once into the volume: docker run ... steer-heal --model smollm2
# With a GPU: docker run --gpus all ...   With gemma: docker run -e HF_TOKEN ... steer-heal --model google/gemma-3-1b-it
FROM python:3.11-slim

# --build-arg PIP_EXTRA_INDEX_URL=... : a second package registry, such as one with builds of torch for the CPU
ARG PIP_EXTRA_INDEX_URL
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    STEER_HEAL_HOME=/data/steer-heal HF_HOME=/data/huggingface HF_HUB_DISABLE_TELEMETRY=1 GRADIO_ANALYTICS_ENABLED=False

RUN useradd --create-home --uid 1000 steer && mkdir /data && chown steer /data
WORKDIR /app
COPY requirements.txt .
RUN pip install -r requirements.txt
COPY --chown=steer app.py pyproject.toml LICENSE README.md ./
COPY --chown=steer steer_heal steer_heal
COPY --chown=steer components components

USER steer
VOLUME /data
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/')"]
ENTRYPOINT ["python", "app.py", "--host", "0.0.0.0", "--runs", "/data/runs", "--db", "/data/runs.duckdb"]
