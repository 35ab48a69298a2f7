"""Damage as disks and people do it."""


def flip(path, place=0.5):
    """Turn one bit of a file; `place` is 0 at its beginning and 1 at its end."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
