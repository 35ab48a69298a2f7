"""Scripts outside the package, as modules."""

import sys
from importlib.util import module_from_spec, spec_from_file_location


def script(path):
    """The script at this path as a module."""
    place = spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = module_from_spec(place)
    sys.modules[place.name] = module  # where dataclasses look for their names
    place.loader.exec_module(module)
    return module
