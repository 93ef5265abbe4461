"""TAESD and Stable Diffusion's KL autoencoder in plain PyTorch on a GPU, bf16: the baseline of `benches/gpu_codec.rs`.

    python benches/pytorch/codec_gpu.py [--batch 16] [--side 256] [--repeats 20]

One JSON line a case and a way of running it: eager and channels_last, some also compiled. Weights do not change the speed: they are
random.
"""
import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn

from taesd_decode import Tiny


class Resnet(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, i, 1e-6), nn.Conv2d(i, o, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, o, 1e-6), nn.Conv2d(o, o, 3, padding=1)
        self.short = nn.Identity() if i == o else nn.Conv2d(i, o, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h))) + self.short(x)


class Attention(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.norm = nn.GroupNorm(32, w, 1e-6)
        self.q, self.k, self.v, self.out = (nn.Linear(w, w) for _ in range(4))

    def forward(self, x):
        b, c, h, w = x.shape
        t = self.norm(x).flatten(2).transpose(1, 2)
        y = F.scaled_dot_product_attention(self.q(t)[:, None], self.k(t)[:, None], self.v(t)[:, None])[:, 0]
        return x + self.out(y).transpose(1, 2).reshape(b, c, h, w)


class Up(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.conv = nn.Conv2d(w, w, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Down(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.conv = nn.Conv2d(w, w, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def middle(w):
    return [Resnet(w, w), Attention(w), Resnet(w, w)]


def decoder(widths=(512, 512, 256, 128)):
    layers, last = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 512, 3, padding=1), *middle(512)], 512
    for i, w in enumerate(widths):
        layers += [Resnet(last, w), Resnet(w, w), Resnet(w, w)] + ([Up(w)] if i < 3 else [])
        last = w
    return nn.Sequential(*layers, nn.GroupNorm(32, last, 1e-6), nn.SiLU(), nn.Conv2d(last, 3, 3, padding=1))


def encoder(widths=(128, 256, 512, 512)):
    layers, last = [nn.Conv2d(3, 128, 3, padding=1)], 128
    for i, w in enumerate(widths):
        layers += [Resnet(last, w), Resnet(w, w)] + ([Down(w)] if i < 3 else [])
        last = w
    return nn.Sequential(*layers, *middle(512), nn.GroupNorm(32, last, 1e-6), nn.SiLU(), nn.Conv2d(last, 8, 3, padding=1), nn.Conv2d(8, 8, 1))


def clock(f, repeats):
    for _ in range(3):
        f()
    times = []
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            f()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3 / repeats)
    return sorted(times)[1]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--side", type=int, default=256)
    p.add_argument("--repeats", type=int, default=20)
    p.add_argument("--compile", nargs="*", default=["taesd.decode", "kl.decode"], help="cases that are also compiled")
    a = p.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    z = torch.randn(a.batch, 4, a.side // 8, a.side // 8, device="cuda", dtype=torch.bfloat16)
    x = torch.rand(a.batch, 3, a.side, a.side, device="cuda", dtype=torch.bfloat16) * 2 - 1
    tiny = Tiny()
    cases = [("taesd.decode", tiny.decoder, z), ("taesd.encode", tiny.encoder, x), ("taesd.gradient", tiny.decoder, z),
             ("kl.decode", decoder(), z), ("kl.encode", encoder(), x)]
    for name, net, given in cases:
        net = net.to("cuda", torch.bfloat16)
        for layout, form in [("", torch.contiguous_format), ("channels_last", torch.channels_last)]:
            net, given = net.to(memory_format=form), given.contiguous(memory_format=form)
            ways = [("eager", net)] + ([("compile", torch.compile(net))] if name in a.compile else [])
            for way, f in ways:
                def call():
                    if name.endswith("gradient"):
                        net.zero_grad(set_to_none=True)
                        f(given).sum().backward()
                    else:
                        with torch.inference_mode():
                            f(given)
                ms = clock(call, a.repeats)
                print(json.dumps({"case": name, "batch": a.batch, "side": a.side, "way": f"{way} {layout}".strip(), "ms": ms,
                                  "torch": torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
