"""The schema of hashicorp/aws, read from the JavaScript of the package cdktn-provider-aws.

The package is generated from the provider's own schema. A class of the package is a resource, a data source or a block. Each
attribute and each block of a class follows a comment:

    // max_size - computed: false, optional: false, required: true
    _maxSize;
    get maxSize() { return this.getNumberAttribute('max_size'); }

    // instance_refresh - computed: false, optional: true, required: false
    _instanceRefresh = new AutoscalingGroupInstanceRefreshOutputReference(this, "instance_refresh");

How a block nests is in the object that the package turns into HCL: `instance_refresh: { …, isBlock: true, type: "list", … }`.
"""

import dataclasses
import importlib.util
import json
import pathlib
import re
import tarfile

CLASS = re.compile(r"^class (\w+) extends cdktn\.", re.MULTILINE)
MEMBER = re.compile(r"^    // (\w+) - computed: (\w+), optional: (\w+), required: (\w+)$", re.MULTILINE)
GETTER = re.compile(r"this\.(get\w+Attribute|interpolationForAttribute)\('\w+'\)|new cdktn\.(\w+Map)\(")
NESTED = re.compile(r'= new (\w+?)(List|Map|OutputReference)\(this, "\w+"(?:, (true|false))?\);')
NESTING = re.compile(r'^\s+(\w+): \{\s+value: .*,\s+isBlock: true,\s+type: "(\w+)",', re.MULTILINE)
STRING = re.compile(r"^            (\w+): \{\s+value: cdktn\.stringToHclTerraform\(", re.MULTILINE)

# Types as Terraform writes them in JSON.
TYPES = {
    "getStringAttribute": "string",
    "getNumberAttribute": "number",
    "getBooleanAttribute": "bool",
    "getListAttribute": ["list", "string"],
    "getNumberListAttribute": ["list", "number"],
    "getStringMapAttribute": ["map", "string"],
    "getNumberMapAttribute": ["map", "number"],
    "getBooleanMapAttribute": ["map", "bool"],
    "StringMap": ["map", "string"],
    "NumberMap": ["map", "number"],
    "BooleanMap": ["map", "bool"],
    # A type that the package doesn't spell out takes any value.
    "interpolationForAttribute": "dynamic",
}


@dataclasses.dataclass
class Attribute:
    """A name with a value."""

    type: object
    computed: bool
    optional: bool
    required: bool


@dataclasses.dataclass
class Nested:
    """A block in a block: its nesting, and whether at least one or at most one may be there."""

    nesting: str
    required: bool
    single: bool
    block: "Block"


@dataclasses.dataclass
class Block:
    """Attributes and blocks by name."""

    attributes: dict
    blocks: dict


class Source:
    """The source of a resource or of a data source: the text of each class, and the nesting of each block."""

    def __init__(self, text):
        starts = list(CLASS.finditer(text))
        ends = [match.start() for match in starts[1:]] + [len(text)]
        self.classes = {match[1]: text[match.start() : end] for match, end in zip(starts, ends)}
        self.text = text

    def root(self, type_name):
        """The block of the class that has this Terraform type."""
        mark = f"terraformResourceType: '{type_name}'"
        return self.block(next(name for name, text in self.classes.items() if mark in text))

    def block(self, class_name):
        text = self.classes[class_name]
        attributes, blocks = {}, {}
        members = list(MEMBER.finditer(text))
        for member, end in zip(members, [match.start() for match in members[1:]] + [len(text)]):
            name, body = member[1], text[member.end() : end]
            flags = [flag == "true" for flag in member.groups()[1:]]
            nested = NESTED.search(body)
            if nested is None:
                attributes[name] = Attribute(type_of(body), *flags)
                continue
            inner = self.block(f"{nested[1]}OutputReference")
            is_computed_alone = flags == [True, False, False]
            if is_computed_alone:
                attributes[name] = Attribute(object_type(inner, nested), *flags)
            else:
                nesting = self.nesting(class_name, name)
                is_single = nested[2] == "OutputReference" and nesting != "single"
                blocks[name] = Nested(nesting, flags[2], is_single, inner)
        return Block(attributes, blocks)

    def nesting(self, class_name, name):
        """How a block nests in a class. A class that is a block has a function for its HCL, and a resource has a method."""
        function = class_name.removesuffix("OutputReference")
        function = f"function {function[0].lower()}{function[1:]}ToHclTerraform("
        where = self.text if function in self.text else self.classes[class_name]
        where = where[where.index(function if function in self.text else "synthesizeHclAttributes() {") :]
        found = next(match for match in NESTING.finditer(where) if match[1] == name)
        return "single" if found[2] == "struct" else found[2]

    def provider(self):
        """The texts that a provider block may set. The package spells out no other type of the provider block."""
        texts = STRING.findall(self.classes["AwsProvider"])
        # Terraform itself takes the alias.
        return Block({name: Attribute("string", False, True, False) for name in texts if name != "alias"}, {})


def type_of(body):
    getter = GETTER.search(body)
    kind = TYPES[getter[1] or getter[2]]
    return ["set", kind[1]] if "Fn.tolist(" in body and isinstance(kind, list) else kind


def object_type(block, nested):
    """The type of an attribute with the content of a block."""
    of_attributes = {name: attribute.type for name, attribute in block.attributes.items()}
    of_blocks = {name: [inner.nesting, object_type(inner.block, None)] for name, inner in block.blocks.items()}
    content = ["object", of_attributes | of_blocks]
    if nested is None or nested[2] == "OutputReference":
        return content
    return ["map" if nested[2] == "Map" else "set" if nested[3] == "true" else "list", content]


def texts(names):
    """The texts of these files of the package, without the files that the package doesn't have."""
    # An import of the package would start Node.js.
    directory = pathlib.Path(importlib.util.find_spec("cdktn_provider_aws").origin).parent
    [archive] = directory.glob("_jsii/*.tgz")
    with tarfile.open(archive, "r|gz") as package:
        return {member.name: package.extractfile(member).read().decode() for member in package if member.name in names}


def read(resources, data_sources):
    """The provider's version, its own schema, and the schemas of those types that the provider has."""

    def path(name):
        return f"package/lib/{name.replace('_', '-')}/index.js"

    resources = {path(name.removeprefix("aws_")): name for name in resources}
    data_sources = {path(f"data_{name}"): name for name in data_sources}
    itself, manifest = path("provider"), "package/package.json"
    found = texts({itself, manifest, *resources, *data_sources})

    def blocks(names):
        return {name: Source(found[file]).root(name) for file, name in names.items() if file in found}

    version = json.loads(found[manifest])["cdktn"]["provider"]["version"]
    return version, Source(found[itself]).provider(), blocks(resources), blocks(data_sources)
