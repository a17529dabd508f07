"""The chart, rendered by Helm's own engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parent / "gotohotel"
PRESETS = ("default", "laptop", "production")
RELEASE = NAMESPACE = "hotel"
GOLDEN = Path(__file__).parents[1] / "tests" / "chart" / "golden"

Object = dict[str, Any]


class UniqueKeys(yaml.CSafeLoader):
    """Refuses a key that is there twice: Helm and Kubernetes take the last one without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Raises ValueError."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"{twice} is there twice, line {node.start_mark.line}")
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Rendered:
    """What a release would consist of."""

    objects: list[Object]
    notes: str

    def of(self, *kinds: str) -> list[Object]:
        """The objects of these kinds."""
        return [each for each in self.objects if each["kind"] in kinds]

    def named(self, kind: str, name: str) -> Object:
        """One object; its name without the release's."""
        return next(each for each in self.of(kind) if each["metadata"]["name"] == f"{RELEASE}-gotohotel-{name}")

    def pods(self) -> list[tuple[str, Object, Object]]:
        """(what makes it, labels, spec) of every kind of pod."""
        found = []
        for each in self.objects:
            name = f"{each['kind']}/{each['metadata']['name']}"
            if each["kind"] == "Pod":
                found.append((name, each["metadata"]["labels"], each["spec"]))
            elif template := each.get("spec", {}).get("template", {}).get("spec") and each["spec"]["template"]:
                found.append((name, template["metadata"]["labels"], template["spec"]))
        return found


def values_of(preset: str) -> Object:
    """The values of a preset."""
    if preset == "default":
        return {}
    values: Object = yaml.load((CHART / f"values-{preset}.yaml").read_text(), UniqueKeys)  # noqa: S506 - a safe loader
    return values


def render(values: Object, *, release: str = RELEASE) -> Rendered:
    """Renders the chart. Raises helm_python.HelmError for values that are refused."""
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name=release, namespace=NAMESPACE)
    objects: list[Object] = []
    for name, text in sorted(files.items()):
        if name.endswith(".yaml"):
            objects += [each for each in yaml.load_all(text, UniqueKeys) if each]
    [notes] = [text for name, text in files.items() if name.endswith("NOTES.txt")]
    return Rendered(objects, notes)


def golden(rendered: Rendered) -> str:
    """The objects as text; what is made anew each time is left out."""
    shown = []
    for each in rendered.objects:
        if each["kind"] == "Secret":
            each = {**each, "data": dict.fromkeys(each["data"], "(made)")}
        shown.append(each)
    return yaml.dump_all(shown, Dumper=yaml.CSafeDumper, default_flow_style=None, width=120, sort_keys=True)
