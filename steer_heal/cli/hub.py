"""A folder put on the hub, only when asked to."""

from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from steer_heal.config import SettingsError
from steer_heal.sources import HUB_ID


def check(name: str) -> str:
    """The hub id itself. Raises: `SettingsError`, before anything is written or sent."""
    if not HUB_ID.fullmatch(name):
        raise SettingsError(f"{name!r} is no hub id: give OWNER/NAME.")
    return name


def push(folder: Path, name: str, *, public: bool = False) -> str:
    """Uploads the folder as a model; gives its address. Raises: `SettingsError`."""
    api = HfApi()
    try:
        made = api.create_repo(check(name), private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload from steer-heal")
    except LocalTokenNotFoundError as error:
        raise SettingsError("You are not logged in to the hub: run `hf auth login`.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        why = {401: "log in with `hf auth login`", 403: "your token may not write there"}.get(
            status if isinstance(status, int) else 0, str(error).strip().partition("\n")[0]
        )
        raise SettingsError(f"The hub refused {name} ({status}): {why}.") from error
    except (OSError, httpx2.HTTPError) as error:
        raise SettingsError(f"The hub cannot be reached to push {name} ({error}): go online.") from error
    return str(made)
