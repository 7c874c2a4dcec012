"""The page: one panel a file. It never imports torch, transformers or duckdb."""

import os

# Read by gradio when it is imported: nothing is sent anywhere.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
