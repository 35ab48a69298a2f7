"""The suite that every method passes: subclass `MethodConformance` and name the method."""

from prunekit.conformance.suite import MethodConformance as MethodConformance
