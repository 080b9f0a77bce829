"""Parameter names and shapes of common models."""

from __future__ import annotations

Shape = tuple[int, ...]


def gpt2_small_shapes() -> list[tuple[str, Shape]]:
    """GPT-2 small with tied embeddings: 148 tensors, 124 439 808 elements."""
    width, layers = 768, 12
    shapes: list[tuple[str, Shape]] = [("wte", (50257, width)), ("wpe", (1024, width))]
    for i in range(layers):
        shapes += [
            (f"h.{i}.ln_1.weight", (width,)),
            (f"h.{i}.ln_1.bias", (width,)),
            (f"h.{i}.attn.c_attn.weight", (width, 3 * width)),
            (f"h.{i}.attn.c_attn.bias", (3 * width,)),
            (f"h.{i}.attn.c_proj.weight", (width, width)),
            (f"h.{i}.attn.c_proj.bias", (width,)),
            (f"h.{i}.ln_2.weight", (width,)),
            (f"h.{i}.ln_2.bias", (width,)),
            (f"h.{i}.mlp.c_fc.weight", (width, 4 * width)),
            (f"h.{i}.mlp.c_fc.bias", (4 * width,)),
            (f"h.{i}.mlp.c_proj.weight", (4 * width, width)),
            (f"h.{i}.mlp.c_proj.bias", (width,)),
        ]
    return [*shapes, ("ln_f.weight", (width,)), ("ln_f.bias", (width,))]


def bert_base_shapes() -> list[tuple[str, Shape]]:
    """BERT base, uncased, with a classifier of two classes: 201 tensors, 109 483 778 elements."""
    width, layers = 768, 12

    def linear(name: str, outputs: int, inputs: int) -> list[tuple[str, Shape]]:
        return [(f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,))]

    def norm(name: str) -> list[tuple[str, Shape]]:
        return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]

    shapes: list[tuple[str, Shape]] = [
        ("embeddings.word", (30522, width)),
        ("embeddings.position", (512, width)),
        ("embeddings.token_type", (2, width)),
        *norm("embeddings.norm"),
    ]
    for i in range(layers):
        for name in ("query", "key", "value", "attention"):
            shapes += linear(f"layer.{i}.{name}", width, width)
        shapes += norm(f"layer.{i}.attention_norm")
        shapes += linear(f"layer.{i}.intermediate", 4 * width, width)
        shapes += linear(f"layer.{i}.output", width, 4 * width)
        shapes += norm(f"layer.{i}.output_norm")
    return [*shapes, *linear("pooler", width, width), *linear("classifier", 2, width)]


def resnet50_shapes() -> list[tuple[str, Shape]]:
    """ResNet-50 for 1000 classes: 161 tensors, 25 557 032 elements."""
    shapes: list[tuple[str, Shape]] = []

    def convolution(name: str, out_channels: int, in_channels: int, kernel: int) -> None:
        shapes.append((f"{name}.weight", (out_channels, in_channels, kernel, kernel)))
        shapes.append((f"{name}.bn.weight", (out_channels,)))
        shapes.append((f"{name}.bn.bias", (out_channels,)))

    convolution("conv1", 64, 3, 7)
    channels = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            convolution(f"{name}.conv1", width, channels, 1)
            convolution(f"{name}.conv2", width, width, 3)
            convolution(f"{name}.conv3", 4 * width, width, 1)
            if block == 0:
                convolution(f"{name}.downsample", 4 * width, channels, 1)
            channels = 4 * width
    return [*shapes, ("fc.weight", (1000, channels)), ("fc.bias", (1000,))]
