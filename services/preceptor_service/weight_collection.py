"""Removes from the store of weights what expired. Called by `WeightStore`, beside commits and other collections."""

from __future__ import annotations

import logging
import uuid
from contextlib import suppress

from preceptor.errors import InternalError, WeightsNotFoundError
from preceptor_service.failpoints import reached
from preceptor_service.storage import SET_ASIDE, Storage
from preceptor_service.weight_versions import ROLES, Place, manifest_path, numbers_among, read_manifest

UPLOAD_GRACE_S = 3600.0
"""A staging file that nothing was written to for so long is taken for abandoned."""

logger = logging.getLogger(__name__)


def collect(storage: Storage, keep_versions: int, grace_s: float) -> None:
    """Removes learner versions that expired `grace_s` ago, blobs that none names, and abandoned uploads.

    What a version in use names is never lost: a commit that finds its blob gone after all puts it there again.
    """
    now = storage.clock_s()
    for folder, versions in storage.all_versions(("learner",)):
        numbers = numbers_among(versions.names)
        for expired, successor in zip(numbers, numbers[keep_versions:], strict=False):
            # It stays a while after it expired, for the super-batches that are pinned to it, and so that a
            # slow push can still see that it lost.
            with suppress(FileNotFoundError):  # another collection was faster
                if storage.modified_s(manifest_path(folder, successor)) < now - grace_s:
                    storage.remove(manifest_path(folder, expired))
                    reached("version-expired")
    set_aside = [name for name in storage.names("staging") if name.endswith(SET_ASIDE)]  # by collections that died
    named = _named_digests(storage)
    for name in storage.names("blobs") if named is not None else ():
        with suppress(FileNotFoundError):  # another collection was faster
            if name not in (named or ()) and storage.modified_s(f"blobs/{name}") < now - grace_s:
                # Set aside first: a commit that named it in this very moment is seen afterwards.
                set_aside.append(f"{name}.{uuid.uuid4().hex}{SET_ASIDE}")
                storage.rename(f"blobs/{name}", f"staging/{set_aside[-1]}")
                reached("blob-set-aside")
    if set_aside:
        _restore_or_remove(storage, set_aside)
    storage.sweep(now - UPLOAD_GRACE_S)


def _restore_or_remove(storage: Storage, set_aside: list[str]) -> None:
    named = _named_digests(storage)  # once for all of them: it reads every manifest
    for name in set_aside:
        blob = name.partition(".")[0]
        with suppress(FileNotFoundError):  # another collection was faster
            if (named is None or blob in named) and not storage.exists(f"blobs/{blob}"):
                storage.rename(f"staging/{name}", f"blobs/{blob}")
                reached("blob-restored")
            else:
                storage.remove(f"staging/{name}")
                reached("blob-removed")


def _named_digests(storage: Storage) -> set[str] | None:
    """Returns the digests, without "sha256:", of all versions with a manifest; None where one cannot be read."""
    named = set()
    for folder, versions in storage.all_versions(ROLES):
        place = Place(versions.run_id, versions.role, folder)
        for number in numbers_among(versions.names):
            try:
                named |= {digest.removeprefix("sha256:") for digest in read_manifest(storage, place, number).digests}
            except WeightsNotFoundError:
                continue  # deleted since it was listed
            except InternalError as error:
                logger.warning("no weights are removed from the store: %s", error)
                return None
    return named
