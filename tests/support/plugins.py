"""Packages that are found as installed ones are."""


def write_metadata(folder, distribution, plugin, module):
    """Make a folder that is searched for modules hold a distribution, whose plug-in is one of them."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[prunekit.plugins]\n{plugin} = {module}\n")
