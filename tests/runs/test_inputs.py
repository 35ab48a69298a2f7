"""What is looked at before anything starts: data and model of a configuration."""

from support.folders import classifier_folder

from prunekit.config.composition import compose
from prunekit.runs.identity import canonical
from prunekit.runs.inputs import cache_of_problems


def test_a_given_model_is_looked_at_and_not_the_backbone_whose_place_it_takes(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"ba de {row},{row % 2}\n" for row in range(40)))
    model = classifier_folder(tmp_path / "my_model", names=("0", "1"))
    words = ["task=csv", f"task.file={tmp_path / 't.csv'}", f"model={model}", f"data.cache_dir={tmp_path / 'cache'}"]
    assert cache_of_problems()(canonical(compose([*words, "method=topk"])[0])) is None
