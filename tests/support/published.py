"""Checkpoints in the layout of the ToP and LTP repositories, of tiny random weights, and what their code computes."""

import json

import torch
from torch.nn.functional import softmax

from support.models import tiny_model

TOKEN_Z = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
LOCATIONS = [2, 3]
DIFFERENCES = [0.0, 0.0102, 0.0053, 0.0005]
FINAL = 0.02


class L0ModuleForMAC(torch.nn.Module):
    """Stands for the class of the ToP repository that l0_module.pt was pickled from."""

    def __init__(self, locations):
        super().__init__()
        self.token_loga = torch.nn.Parameter(torch.zeros(len(locations), 4))
        self.token_prune_loc = locations
        self.bin_num = 4


def words(count):
    return [f"w{number}" for number in range(count)]


def write_top(folder, *, token_z=TOKEN_Z, pruner_z=None, locations=LOCATIONS, classes=3, changed=None, **config):
    """A checkpoint of ToP; `changed` edits its weights, `config` its config.json. Returns the model."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model("bert", classes=classes)
    weights = model.state_dict() | {"bert.embeddings.position_ids": torch.arange(80)[None]}
    torch.save(changed(weights) if changed else weights, folder / "pytorch_model.bin")
    switches = torch.ones(len(token_z)) if pruner_z is None else pruner_z
    torch.save({"token_z": token_z, "pruner_z": switches}, folder / "zs.pt")
    if locations is not None:
        torch.save(L0ModuleForMAC(locations), folder / "l0_module.pt")
    said = {"architectures": ["ToPBertForSequenceClassification"], "model_type": "bert", "output_attentions": True}
    said |= {"output_hidden_states": True, "do_layer_distill": False}
    write_config(folder, model, **(said | config))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words(115)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return model


def write_ltp(folder, *, differences=DIFFERENCES, changed=None, **config):
    """A checkpoint of LTP. Returns the model."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model("roberta")
    weights = {name.replace("roberta.", "ibert."): tensor for name, tensor in model.state_dict().items()}
    for layer, difference in enumerate(differences):
        place = f"ibert.encoder.layer.{layer}.attention.self"
        weights[f"{place}.pruner.keep_threshold"] = torch.tensor(difference)
        weights[f"{place}.query.fc_scaling_factor"] = torch.zeros(32)
        weights[f"{place}.query.weight_integer"] = torch.zeros(32, 32)
    torch.save(changed(weights) if changed else weights, folder / "pytorch_model.bin")
    said = {
        "model_type": "ltp",
        "prune_mode": "absolute_threshold",
        "final_token_threshold": FINAL,
        "quant_mode": False,
    }
    write_config(folder, model, **(said | config))
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *words(115)]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return model


def write_config(folder, model, **said):
    sizes = {name: value for name, value in model.config.to_dict().items() if name != "transformers_version"}
    (folder / "config.json").write_text(json.dumps(sizes | said))


def masked_forward(model, batch, decide):
    """Logits of a stock model whose layers hide what `decide` drops, and the tokens that enter each layer's attention.

    Nothing is removed. `decide(layer, attention, alive)`, called after the attention of each layer, returns the tokens
    that the next one may attend to.
    """
    body = model.base_model
    hidden = body.embeddings(input_ids=batch["input_ids"])
    alive, counts = batch["attention_mask"].float(), []
    for number, layer in enumerate(body.encoder.layer):
        counts.append(alive.sum(-1))
        own = layer.attention.self
        query, key, value = (
            part(hidden).unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)
            for part in (own.query, own.key, own.value)
        )
        scaled = query @ key.transpose(2, 3) / own.attention_head_size**0.5
        attention = softmax(scaled - 10000 * (1 - alive)[:, None, None], dim=-1)
        alive = decide(number, attention, alive)
        attended = layer.attention.output((attention @ value).transpose(1, 2).flatten(2), hidden)
        hidden = layer.output(layer.intermediate(attended), attended)
    first = hidden if model.config.model_type == "roberta" else body.pooler(hidden)
    return model.classifier(first), torch.stack(counts)


def top_decision(token_z, pruner_z, locations):
    """ToP: every row votes, padding too; [CLS] has no rank; location l is decided by the attention of layer l - 1."""

    def decide(layer, attention, alive):
        if layer + 1 not in locations or pruner_z[locations.index(layer + 1)] == 0:
            return alive
        ranked = alive[:, 1:]
        scores = attention.mean((1, 2))[:, 1:] * ranked
        rank = scores.argsort(dim=-1, descending=True).argsort(dim=-1)
        share = (rank / (ranked.sum(-1, keepdim=True) + 1e-6)).clamp(0, 1)
        gates = torch.cat([token_z[locations.index(layer + 1)], torch.zeros(1)])
        kept = gates[(share * token_z.shape[1]).long()] * ranked
        return torch.cat([alive[:, :1], kept], dim=1)

    return decide


def ltp_decision(thresholds):
    """LTP: alive rows vote, divided by the padded length; layer 0 keeps everything."""

    def decide(layer, attention, alive):
        scores = (attention * alive[:, None, :, None]).mean((1, 2))
        return alive if layer == 0 else (scores >= max(1e-5, thresholds[layer])).float()

    return decide
