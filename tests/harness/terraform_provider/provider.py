"""A double of Terraform's provider hashicorp/aws: the provider's own schema, and plans without AWS.

    provider.py DIRECTORY SOCKET

The double serves the types that the Terraform files below DIRECTORY name, on the socket SOCKET, in Terraform's plugin protocol
(https://developer.hashicorp.com/terraform/plugin/terraform-plugin-protocol). Terraform itself compares a configuration with the
schema. A planned resource has its arguments, and every other attribute that the provider computes is known after the apply, as
https://github.com/hashicorp/terraform/blob/main/docs/resource-instance-change-lifecycle.md asks for. Nothing can be applied.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import sys
import threading
import time

import grpc
import msgpack
from tf.gen import tfplugin_pb2 as pb
from tf.gen import tfplugin_pb2_grpc as rpc

import answers
import schema

# An unknown value in Terraform's MessagePack
# (https://github.com/hashicorp/terraform/blob/main/docs/plugin-protocol/object-wire-format.md).
UNKNOWN = msgpack.ExtType(0, b"\0")
NESTING = {name: getattr(pb.Schema.NestedBlock, name.upper()) for name in ("list", "set", "map", "single")}


def decoded(value):
    return msgpack.unpackb(value.msgpack, strict_map_key=False)


def encoded(value):
    return pb.DynamicValue(msgpack=msgpack.packb(value))


def message(block):
    """A block as the protocol has it."""
    attributes = [
        pb.Schema.Attribute(
            name=name,
            type=json.dumps(attribute.type).encode(),
            required=attribute.required,
            optional=attribute.optional,
            computed=attribute.computed,
        )
        for name, attribute in block.attributes.items()
    ]
    blocks = [
        pb.Schema.NestedBlock(
            type_name=name,
            block=message(nested.block),
            nesting=NESTING[nested.nesting],
            min_items=int(nested.required),
            max_items=int(nested.single),
        )
        for name, nested in block.blocks.items()
    ]
    return pb.Schema.Block(attributes=attributes, block_types=blocks)


def completed(block, values, unset):
    """The values of a block, with `unset(name, attribute)` for each computed attribute that has none."""
    done = dict(values)
    for name, attribute in block.attributes.items():
        if done.get(name) is None and attribute.computed:
            done[name] = unset(name, attribute)
    for name, nested in block.blocks.items():
        inner = done.get(name)
        if isinstance(inner, list):
            done[name] = [completed(nested.block, value, unset) for value in inner]
        elif isinstance(inner, dict):
            done[name] = completed(nested.block, inner, unset)
    return done


def settled(block, values):
    """The names that a configuration sets although the provider alone decides them. Terraform leaves this check to the provider."""
    for name, attribute in block.attributes.items():
        if values.get(name) is not None and not (attribute.required or attribute.optional):
            yield name
    for name, nested in block.blocks.items():
        inner = values.get(name)
        for value in inner if isinstance(inner, list) else [inner] if isinstance(inner, dict) else []:
            yield from settled(nested.block, value)


def diagnostics(block, config):
    """What a provider says about a configuration, in the words of HashiCorp's plugin SDK."""
    return [
        pb.Diagnostic(severity=pb.Diagnostic.ERROR, summary=f"Can't configure a value for {json.dumps(name)}")
        for name in settled(block, decoded(config))
    ]


class Provider(rpc.ProviderServicer):
    """The calls of `terraform validate` and `terraform plan -refresh=false`."""

    def __init__(self, itself, resources, data_sources):
        self.itself, self.resources, self.data_sources = itself, resources, data_sources
        self.region = None

    def GetProviderSchema(self, request, context):
        def schemas(blocks):
            return {name: pb.Schema(block=message(block)) for name, block in blocks.items()}

        return pb.GetProviderSchema.Response(
            provider=pb.Schema(block=message(self.itself)),
            resource_schemas=schemas(self.resources),
            data_source_schemas=schemas(self.data_sources),
        )

    def ValidateProviderConfig(self, request, context):
        return pb.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, request, context):
        return pb.ValidateResourceConfig.Response(diagnostics=diagnostics(self.resources[request.type_name], request.config))

    def ValidateDataResourceConfig(self, request, context):
        return pb.ValidateDataResourceConfig.Response(diagnostics=diagnostics(self.data_sources[request.type_name], request.config))

    def ConfigureProvider(self, request, context):
        self.region = decoded(request.config).get("region")
        return pb.ConfigureProvider.Response()

    def UpgradeResourceState(self, request, context):
        block = self.resources[request.type_name]
        collections = {name: None if nested.nesting == "single" else [] for name, nested in block.blocks.items()}
        state = dict.fromkeys(block.attributes) | collections | json.loads(request.raw_state.json)
        return pb.UpgradeResourceState.Response(upgraded_state=encoded(state))

    def PlanResourceChange(self, request, context):
        planned = completed(self.resources[request.type_name], decoded(request.proposed_new_state), lambda *_: UNKNOWN)
        return pb.PlanResourceChange.Response(planned_state=encoded(planned))

    def ReadDataSource(self, request, context):
        config = decoded(request.config)
        known = answers.of(request.type_name, config, self.region)
        block = self.data_sources[request.type_name]
        state = completed(block, config, lambda name, attribute: known.get(name, answers.plain(name, attribute.type)))
        return pb.ReadDataSource.Response(state=encoded(state))

    def StopProvider(self, request, context):
        return pb.StopProvider.Response()


def follow_parent():
    """Ends the double when its parent ends, for any reason."""
    parent = os.getppid()

    def follow():
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def named_types(directory):
    """The types of resources and of data sources that the Terraform files below a directory name."""
    text = "\n".join(path.read_text() for path in sorted(pathlib.Path(directory).rglob("*.tf")))
    return (sorted(set(re.findall(rf'^{kind} "(aws_\w+)"', text, re.MULTILINE))) for kind in ("resource", "data"))


def main(directory, socket):
    follow_parent()
    version, itself, resources, data_sources = schema.read(*named_types(directory))
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=10))
    rpc.add_ProviderServicer_to_server(Provider(itself, resources, data_sources), server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    print(f"serves hashicorp/aws {version}: {len(resources)} resources and {len(data_sources)} data sources")
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
