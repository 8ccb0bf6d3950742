"""Make a manifest visible in a place, its objects first: the one way in which a snapshot comes to exist."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from raysnap.errors import StoreDamaged
from raysnap.store.backends.place import MAX_ATTEMPTS, Needed, Place, gc_race_error
from raysnap.store.catalog import manifest_key
from raysnap.store.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from raysnap.store.store_file import raise_format


def publish_manifest(
    place: Place, manifest: Manifest, content: bytes, supply: Callable[[Needed], None]
) -> Manifest | None:
    """Make the manifest visible, and return the one that was there already, if any.

    `gc` relies on the order draft, look, publish: see `garbage`.

    Args:
        place: the store's place.
        manifest: the manifest.
        content: the bytes of its document.
        supply: puts an object that is missing.

    Raises:
        StoreError: it can't be written, or an object is missing and can't be supplied.
    """
    key = manifest_key(manifest.id)
    raise_format(place, manifest.format)
    for _ in range(MAX_ATTEMPTS):
        with place.draft(content) as draft:
            missing = draft.missing(manifest.objects)
            for needed in missing:
                supply(needed)
            if missing:
                continue
            seen = None
            with suppress(StoreDamaged):
                seen = place.look(key, MAX_MANIFEST_BYTES)
                if seen is not None:
                    found = parse_manifest(seen.content, place.where(key), expected_id=manifest.id)
                    place.sync(key)
                    return found
            if draft.publish(key, seen):
                return None
    raise gc_race_error(place.where(key))
