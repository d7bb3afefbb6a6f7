"""Figures as elements of a page, without what matplotlib's SVG repeats or draws unseen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_REFERENCE = re.compile(r"(url\(#|^#)([^)]+)")
#: Decimals, in points: of straight lines, and of curves, which are as small as markers.
_STRAIGHT, _CURVED = 1, 2


class Figures:
    """The figures of one page, which share their styles and a count of their ids."""

    def __init__(self, colours: Mapping[str, str]) -> None:
        """`colours` are replaced in styles: what a figure was drawn with, and what is shown."""
        self._colours = colours
        self._classes: dict[str, str] = {}
        self._ids = 0

    @property
    def css(self) -> str:
        """The styles of all figures that were put in, a class each."""
        rules = (f".{name}{{{style}}}" for style, name in self._classes.items())
        return "figure svg *{stroke-linejoin:round;stroke-linecap:butt}" + "".join(rules)

    def inline(self, svg: str, label: str) -> str:
        """An SVG file of matplotlib's as an element of a page; `label` is read out."""
        root = ElementTree.fromstring(svg)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
            for key in [key for key in element.attrib if key.startswith("{")]:
                element.set(key.rpartition("}")[2], element.attrib.pop(key))
        names = self._renamed(root)
        for element in root.iter():
            self._slim(element, names)
        _unwrap(root)
        size = {key: root.attrib[key] for key in ("width", "height", "viewBox")}
        root.attrib = {"role": "img", "aria-label": label, **size}
        # Where text or an attribute holds a ">", it is escaped.
        return ElementTree.tostring(root, encoding="unicode").replace(" />", "/>")

    def _renamed(self, root: ElementTree.Element) -> dict[str, str]:
        """New ids, of what is referred to."""
        used = {
            found[2]
            for element in root.iter()
            for value in element.attrib.values()
            if (found := _REFERENCE.search(value))
        }
        names = {}
        for name in sorted(used):
            names[name] = f"i{self._ids}"
            self._ids += 1
        return names

    def _slim(self, element: ElementTree.Element, names: Mapping[str, str]) -> None:
        given, element.attrib = element.attrib, {}
        for key, value in given.items():
            if key == "id":
                if value in names:
                    element.set(key, names[value])
            elif key == "style":
                element.set("class", self._class(value))
            elif key == "d" and given.get("style") != "fill: none":
                element.set(key, shorter(value))
            elif key == "d":
                continue  # A background that nothing is painted on.
            elif key in ("x", "y", "transform"):
                if not value.startswith("rotate(-0 "):
                    element.set(key, re.sub(_NUMBER, lambda n: _digits(float(n[0]), 2), value))
            else:
                element.set(key, _REFERENCE.sub(lambda r: r[1] + names[r[2]], value))
        if element.tag != "text":
            element.text = None
        element.tail = None

    def _class(self, style: str) -> str:
        for drawn, shown in self._colours.items():
            style = style.replace(drawn, shown)
        return self._classes.setdefault(style.replace(": ", ":"), f"s{len(self._classes)}")


def shorter(path: str) -> str:
    """An SVG path of absolute commands M, L, C, Q and z in fewer characters, rounded."""
    places = _CURVED if re.search("[CQ]", path) else _STRAIGHT
    written, now, start, last = "", ("", ""), ("", ""), ""
    for command, numbers in _commands(path, places):
        if command == "Z":
            written, now, last = f"{written}Z", start, command
            continue
        to = numbers[-2], numbers[-1]
        if command == "M":
            written, start = f"{written}M{to[0]} {to[1]}", to
        elif command != "L":
            written += command + " ".join(numbers)
        elif to == now and last != "M":
            continue
        elif to[1] == now[1]:
            # Also where a line is a point, which its ends make visible.
            written, command = f"{written}H{to[0]}", "H"
        elif to[0] == now[0]:
            written, command = f"{written}V{to[1]}", "V"
        else:
            written += f"{' ' if last in ('M', 'L') else 'L'}{to[0]} {to[1]}"
        now, last = to, command
    return written


def _commands(path: str, places: int) -> Iterator[tuple[str, list[str]]]:
    for command, numbers in re.findall(r"([A-Za-z])([^A-DF-Za-df-z]*)", path):
        yield command.upper(), [_digits(float(n), places) for n in re.findall(_NUMBER, numbers)]


def _digits(value: float, places: int) -> str:
    text = f"{value:.{places}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _unwrap(element: ElementTree.Element) -> None:
    """Leaves out groups without attributes, what is not drawn, and what the page has itself."""
    kept: list[ElementTree.Element] = []
    for child in element:
        _unwrap(child)
        if child.tag == "g" and not child.attrib:
            kept += child
        elif child.tag in ("metadata", "style") or (
            child.tag == "path" and "d" not in child.attrib
        ):
            continue
        elif len(child) or child.tag not in ("g", "defs"):
            kept.append(child)
    element[:] = kept
