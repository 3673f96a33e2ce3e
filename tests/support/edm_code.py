"""Networks with the names, the layout and the pickles of EDM's code (NVlabs), written from their description: DDPM++ and ADM."""

import io
import pickle
import sys
import types
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def _reconstruct_persistent_obj(_meta):
    raise AssertionError("it was run")


# Pickle finds the function in the module that it says it is of.
PERSISTENCE = types.ModuleType("torch_utils.persistence")
_reconstruct_persistent_obj.__module__ = PERSISTENCE.__name__
PERSISTENCE._reconstruct_persistent_obj = _reconstruct_persistent_obj


class Persistent(nn.Module):
    """A module that is pickled with its source, as one dictionary that a function would make a module of."""

    def __reduce__(self):
        about = {"type": "class", "version": 6, "module_src": "raise AssertionError\n", "class_name": type(self).__name__}
        return _reconstruct_persistent_obj, ({**about, "state": self.__dict__},)


class Layer(Persistent):
    """A convolution that may resample first, a linear layer (kernel 0) or, without weights, a resampling alone."""

    def __init__(self, inside, outside, kernel=0, *, resample="", weighted=True, bias=True):
        super().__init__()
        shape = (outside, inside, *[kernel] * (2 if kernel else 0))
        self.weight = nn.Parameter(0.3 * torch.randn(shape) / inside**0.5) if weighted else None
        self.bias = nn.Parameter(0.3 * torch.randn(outside)) if weighted and bias else None
        self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25) if resample else None)
        self.resample, self.kernel = resample, kernel

    def forward(self, x):
        if self.resample == "down":
            x = functional.avg_pool2d(x, 2)
        if self.resample == "up":
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        if self.weight is None:
            return x
        if not self.kernel:
            return functional.linear(x, self.weight, self.bias)
        return functional.conv2d(x, self.weight, self.bias, padding=self.kernel // 2)


class Norm(Persistent):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.bias = nn.Parameter(1 + 0.1 * torch.randn(width)), nn.Parameter(0.1 * torch.randn(width))
        self.groups, self.eps = min(32, width // 4), eps

    def forward(self, x):
        return functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class Unit(Persistent):
    def __init__(self, inside, outside, embedding, *, adm, attends=False, resample=""):
        super().__init__()
        eps = 1e-5 if adm else 1e-6
        self.in_channels, self.adm = inside, adm
        self.heads = 0 if not attends else outside // 64 if adm else 1
        self.scale = np.float64(1) if adm else np.sqrt(0.5)  # numpy's, as in the code
        self.norm0, self.conv0 = Norm(inside, eps), Layer(inside, outside, 3, resample=resample)
        self.affine = Layer(embedding, outside * (2 if adm else 1))
        self.norm1, self.conv1 = Norm(outside, eps), Layer(outside, outside, 3)
        self.skip = None
        if inside != outside or resample:
            weighted = inside != outside or not adm
            self.skip = Layer(inside, outside, 1, resample=resample, weighted=weighted)
        if attends:
            self.norm2, self.qkv, self.proj = Norm(outside, eps), Layer(outside, 3 * outside, 1), Layer(outside, outside, 1)

    def forward(self, x, embedding):
        straight = x if self.skip is None else self.skip(x)
        x, modulation = self.conv0(functional.silu(self.norm0(x))), self.affine(embedding)[:, :, None, None]
        if self.adm:
            factor, shift = modulation.chunk(2, dim=1)
            x = self.norm1(x) * (1 + factor) + shift
        else:
            x = self.norm1(x + modulation)
        x = (self.conv1(functional.silu(x)) + straight) * float(self.scale)
        if not self.heads:
            return x
        batch, width, *sides = x.shape
        query, key, value = self.qkv(self.norm2(x)).view(batch, self.heads, width // self.heads, 3, -1).unbind(3)  # row 3 c + t of a head
        seen = (query.transpose(2, 3) @ key / (width // self.heads) ** 0.5).softmax(dim=3)
        x = x + self.proj((value @ seen.transpose(2, 3)).reshape(batch, width, *sides))
        return x * float(self.scale)


class UNet(Persistent):
    """`SongUNet`, or with `adm` `DhariwalUNet`."""

    def __init__(self, side, channels, width, factors, blocks, attending, *, labels=0, augment=0, adm=False):
        super().__init__()
        embedding, self.adm, self.width, self.labels = 4 * width, adm, width, labels
        self.map_layer0, self.map_layer1 = Layer(width, embedding), Layer(embedding, embedding)
        self.map_label = Layer(labels, embedding if adm else width, bias=not adm) if labels else None
        self.map_augment = Layer(augment, width, bias=False) if augment else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        now, skipped = width * factors[0] if adm else width, []
        for level, factor in enumerate(factors):
            name = f"{side >> level}x{side >> level}"
            if level:
                self.enc[f"{name}_down"] = Unit(now, now, embedding, adm=adm, resample="down")
            else:
                self.enc[f"{name}_conv"] = Layer(channels, now, 3)
            skipped.append(now)
            for index in range(blocks):
                self.enc[f"{name}_block{index}"] = Unit(now, width * factor, embedding, adm=adm, attends=side >> level in attending)
                now = width * factor
                skipped.append(now)
        for level, factor in reversed(list(enumerate(factors))):
            name = f"{side >> level}x{side >> level}"
            if level == len(factors) - 1:
                self.dec[f"{name}_in0"] = Unit(now, now, embedding, adm=adm, attends=True)
                self.dec[f"{name}_in1"] = Unit(now, now, embedding, adm=adm)
            else:
                self.dec[f"{name}_up"] = Unit(now, now, embedding, adm=adm, resample="up")
            for index in range(blocks + 1):
                attends = side >> level in attending and (adm or index == blocks)
                self.dec[f"{name}_block{index}"] = Unit(now + skipped.pop(), width * factor, embedding, adm=adm, attends=attends)
                now = width * factor
        last = {"norm": Norm(now, 1e-5 if adm else 1e-6), "conv": Layer(now, channels, 3)}
        for part, layer in last.items():
            if adm:
                setattr(self, f"out_{part}", layer)
            else:
                self.dec[f"{side}x{side}_aux_{part}"] = layer

    def forward(self, x, noise, labels=None, augmented=None):
        half, silu = self.width // 2, functional.silu
        waves = noise[:, None] * 10_000 ** (-torch.arange(half) / (half - (not self.adm)))
        embedding = torch.cat([waves.cos(), waves.sin()] if self.adm else [waves.sin(), waves.cos()], dim=1)
        one_hot = functional.one_hot(labels, self.labels).float() if self.labels else None
        if one_hot is not None and not self.adm:
            embedding = embedding + self.map_label(one_hot * self.labels**0.5)
        if augmented is not None:
            embedding = embedding + self.map_augment(augmented)
        embedding = self.map_layer1(silu(self.map_layer0(embedding)))
        if one_hot is not None and self.adm:
            embedding = embedding + self.map_label(one_hot)
        embedding, skipped = silu(embedding), []
        for block in self.enc.values():
            x = block(x, embedding) if isinstance(block, Unit) else block(x)
            skipped.append(x)
        for name, block in self.dec.items():
            if isinstance(block, Unit):
                x = block(torch.cat([x, skipped.pop()], dim=1) if "block" in name else x, embedding)
            else:
                x = block(silu(x)) if name.endswith("conv") else block(x)
        return self.out_conv(silu(self.out_norm(x))) if self.adm else x


class EDMPrecond(Persistent):
    """What a pickle of EDM's holds: the network under `model`, with its preconditioning."""

    def __init__(self, model, **settings):
        super().__init__()
        self.model = model
        self.__dict__.update({"sigma_data": 0.5, "sigma_min": 0, "sigma_max": float("inf"), "use_fp16": False} | settings)
        self._init_args, self._init_kwargs = (), {"label_dim": np.int64(0), "model_type": "SongUNet"}


class VPPrecond(EDMPrecond):
    pass


class VEPrecond(EDMPrecond):
    pass


def pickled(content, protocol=pickle.HIGHEST_PROTOCOL - 1):
    """Returns a pickle of EDM's code: `{"ema": EDMPrecond(...), ...}`."""
    modules = {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": PERSISTENCE}
    with mock.patch.dict(sys.modules, modules):
        stream = io.BytesIO()
        pickle.Pickler(stream, protocol=protocol).dump(content)
    return stream.getvalue()
