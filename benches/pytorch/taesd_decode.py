"""TAESD in plain PyTorch, f32: the baseline of `benches/codec.rs`.

    python benches/pytorch/taesd_decode.py [--batch 4] [--size 192] [--threads 2] [--rounds 20] [--weights FOLDER]

Prints one JSON line with the median and best seconds of a decode and of an encode. Weights do not change the speed; without
them they are random.
"""
import argparse
import json
import statistics
import time

import torch
from torch import nn


def conv(i, o, **kw):
    return nn.Conv2d(i, o, 3, padding=1, **kw)


class Block(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.conv = nn.Sequential(conv(w, w), nn.ReLU(), conv(w, w), nn.ReLU(), conv(w, w))
        self.fuse = nn.ReLU()

    def forward(self, x):
        return self.fuse(self.conv(x) + x)


class Encoder(nn.Module):
    def __init__(self, w=64, latents=4, blocks=(1, 3, 3, 3)):
        super().__init__()
        layers = []
        for i, n in enumerate(blocks):
            layers.append(conv(w, w, stride=2, bias=False) if i else conv(3, w))
            layers += [Block(w) for _ in range(n)]
        self.layers = nn.Sequential(*layers, conv(w, latents))

    def forward(self, x):
        return self.layers(x.add(1).div(2))


class Decoder(nn.Module):
    def __init__(self, w=64, latents=4, blocks=(3, 3, 3, 1)):
        super().__init__()
        layers = [conv(latents, w), nn.ReLU()]
        for i, n in enumerate(blocks):
            layers += [Block(w) for _ in range(n)]
            if i + 1 < len(blocks):
                layers += [nn.Upsample(scale_factor=2), conv(w, w, bias=False)]
            else:
                layers.append(conv(w, 3))
        self.layers = nn.Sequential(*layers)

    def forward(self, z):
        return self.layers(torch.tanh(z / 3) * 3).mul(2).sub(1)


class Tiny(nn.Module):
    def __init__(self, w=64, latents=4, encoder=(1, 3, 3, 3), decoder=(3, 3, 3, 1)):
        super().__init__()
        self.encoder = Encoder(w, latents, encoder)
        self.decoder = Decoder(w, latents, decoder)


def timed(f, rounds):
    f()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        f()
        seconds.append(time.perf_counter() - start)
    return {"median_s": statistics.median(seconds), "best_s": min(seconds)}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--size", type=int, default=192)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=20)
    p.add_argument("--weights")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = Tiny().eval()
    if a.weights:
        from safetensors.torch import load_file
        model.load_state_dict({k: v.float() for k, v in load_file(f"{a.weights}/diffusion_pytorch_model.safetensors").items()})
    z = torch.randn(a.batch, 4, a.size // 8, a.size // 8)
    x = torch.rand(a.batch, 3, a.size, a.size) * 2 - 1
    with torch.inference_mode():
        decode = timed(lambda: model.decoder(z), a.rounds)
        encode = timed(lambda: model.encoder(x), a.rounds)
    print(json.dumps({"torch": torch.__version__, "batch": a.batch, "size": a.size, "threads": a.threads,
                      "decode": decode, "encode": encode}))


if __name__ == "__main__":
    main()
