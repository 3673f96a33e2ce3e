"""Files that are shipped with the package: `repro/shipped/NAME-HASH.safetensors`, HASH being the first 16 digits of their SHA-256.

A configuration names all 64. The published figures of the literature lie there too.
"""

from pathlib import Path

from repro.errors import ReproError
from repro.files.placeholders import refuse_placeholder
from repro.files.writing import sha256_of_file

SHIPPED = Path(__file__).parents[1] / "shipped"
PUBLISHED = SHIPPED / "published.toml"
PREFIX = 16


def shipped_file(sha256: str, key: str) -> Path:
    """Returns the file of a hash.

    Args:
        sha256: Of its bytes.
        key: The configuration key that names it, for the message.

    Raises:
        ReproError: No such file came with the package, or its bytes are others.
    """
    found = sorted(SHIPPED.glob(f"*-{sha256[:PREFIX]}.safetensors"))
    if not found:
        raise ReproError(f"{key}: no file of hash {sha256[:PREFIX]}... lies in {SHIPPED}; install the package anew, or change the key")
    refuse_placeholder(found[0])
    if (actual := sha256_of_file(found[0])) != sha256:
        raise ReproError(f"{found[0]}: damaged, its SHA-256 is {actual}, {key} says {sha256}; install the package anew")
    return found[0]
