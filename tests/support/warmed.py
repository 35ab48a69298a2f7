"""What every process of `python train.py` imports and reads at first: once, for all that are forked from here."""

import gc

import prunekit.cli.main
import prunekit.methods.dense
import prunekit.models.tiny
import prunekit.pipelines.job
import prunekit.pipelines.tokens.translation
import prunekit.pipelines.weights.pipeline  # noqa: F401
from prunekit.config.composition import compose

compose(["method=topk", "task=synthetic", "backbone=tiny"])
gc.collect()
gc.freeze()  # every run ends with a collection, which would copy all of this memory
