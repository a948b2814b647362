"""Where the files of the stores lie: a directory or an object store behind one `Storage`."""

from preceptor_service.storage.opening import as_storage, check_storage, open_storage
from preceptor_service.storage.storage import SET_ASIDE, Storage, StoreHealth, Versions, blob_name

__all__ = [
    "SET_ASIDE",
    "Storage",
    "StoreHealth",
    "Versions",
    "as_storage",
    "blob_name",
    "check_storage",
    "open_storage",
]
