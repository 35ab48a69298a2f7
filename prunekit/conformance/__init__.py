"""The test suite for token-pruning methods: subclass `MethodConformance` and name the method."""

from prunekit.conformance.suite import MethodConformance as MethodConformance
