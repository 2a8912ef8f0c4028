"""YAML as files and command lines give it: plain values of bounded size, whatever the text asks for."""

from typing import Any

import yaml

LONGEST = 200_000  # characters; the longest shipped file has 1,000
VALUES = 20_000  # in all, counted as often as an alias repeats them
DEEPEST = 50  # levels of mappings and lists


class _PlainLoader(yaml.SafeLoader):
    """YAML's safe loader, refusing a key given twice (plain YAML lets the last one win in silence), numbers
    beyond 64 bits and whatever else Python cannot make a value of.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError, OverflowError, KeyError, IndexError):
            kind = node.tag.rpartition(":")[2]
            raise _fault(f"not a value of kind {kind}", node) from None

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node) if len(node.value) < 100 else 1 << 63
        if abs(value) >= 1 << 63:
            raise _fault("a number beyond 64 bits", node)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise _fault(f'key "{key}" is given twice', key_node)
            seen.add(key)
        return super().construct_mapping(node, deep=True)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def load_yaml(text: str) -> Any:
    """The value of a YAML text. Raises YAMLError for what is damaged, too long or too deep."""
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"longer than {LONGEST} characters")
    loader = _PlainLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, 0)
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int | None], depth: int) -> int:
    """How many values a node stands for. A node that an alias names is counted once and added every time;
    while it is being counted it has None, so that one within itself is found.
    """
    if depth > DEEPEST:
        raise _fault("nested too deeply", node)
    if id(node) in known:
        if (count := known[id(node)]) is None:
            raise _fault("a value within itself", node)
        return count
    known[id(node)] = None
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    inner = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
    total = 1 + sum(_count(each, known, depth + 1) for each in inner)
    if total > VALUES:
        raise _fault(f"more than {VALUES} values", node)
    known[id(node)] = total
    return total


def _fault(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
