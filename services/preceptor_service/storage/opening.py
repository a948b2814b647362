"""From the settings to an open `Storage`. Called by the stores, and at start to refuse what cannot work."""

from __future__ import annotations

from pathlib import Path

from preceptor_service.config import ConfigError, WeightsConfig
from preceptor_service.storage.directory import DirectoryStorage
from preceptor_service.storage.storage import Storage


def as_storage(root: Path | Storage) -> Storage:
    """Returns a directory as a storage, and a storage as it is."""
    return DirectoryStorage(root) if isinstance(root, Path) else root


def open_storage(settings: WeightsConfig) -> Storage:
    """Returns the storage that `settings` name.

    Raises:
        ConfigError: what an object store needs is not installed, or the cache of weights cannot be made.
    """
    if isinstance(settings.path, Path):
        return DirectoryStorage(settings.path)
    from preceptor_service.storage.objects import open_objects  # fsspec only where it is asked for

    return open_objects(settings.path, settings.cache_path, settings.cache_bytes)


def check_storage(settings: WeightsConfig) -> None:
    """Returns where the store can be used from here. Blocking.

    Raises:
        ConfigError: it cannot, or it cannot create exclusively, so that two pushes might both win.
    """
    if not isinstance(settings.path, Path):
        from preceptor_service.storage.objects import check_objects

        check_objects(settings.path, settings.cache_path, settings.cache_bytes)
        return
    try:
        settings.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"weights.path is {settings.path}, which cannot be used: {error.strerror}; choose another with --store"
        ) from error
