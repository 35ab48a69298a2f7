"""Folders with models as people bring them: whole ones, and what is wrong with them."""

import json

from safetensors.torch import load_file, save_file


def classifier_folder(folder, *, names=("red", "green", "blue"), family="bert", seed=0):
    """A tiny fine-tuned classifier with its tokenizer, saved by transformers; it knows these classes."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from prunekit.models.tiny import build_tiny_backbone

    build_tiny_backbone(folder, family, seed)
    about = {"num_labels": len(names)}
    if len(names) > 1:
        about["id2label"] = dict(enumerate(names))
        about["label2id"] = {name: number for number, name in enumerate(names)}
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder, **about)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    (folder / ".sha256").unlink(missing_ok=True)  # prunekit's seal of the backbone that was there
    return folder


def edit_json(path, **changes):
    """Overwrite keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path, change):
    """Overwrite a file of tensors by what `change` makes of their dict."""
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path, {"format": "pt"})


def embedder_folder(folder, *, family="bert", modes=("mean",), dense=None, unit=True, seed=0, length=64):
    """A tiny SentenceTransformer with its tokenizer, saved by sentence-transformers; `dense` is an output size."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    from prunekit.models.tiny import build_tiny_backbone

    backbone = folder.with_name(f"{folder.name}-backbone")
    build_tiny_backbone(backbone, family, seed)
    reader = Transformer(str(backbone), max_seq_length=length)
    pool = Pooling(reader.get_embedding_dimension(), pooling_mode=modes)
    modules = [reader, pool]
    if dense is not None:
        modules.append(Dense(pool.get_embedding_dimension(), dense))
    SentenceTransformer(modules=[*modules, *[Normalize()] * unit], device="cpu").save(str(folder))
    return folder
