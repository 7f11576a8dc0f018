"""Golden values for the model families: tiny random models, and what transformers computes on them.

    python tools/golden/families.py tests/data/golden/families

Needs torch, transformers, safetensors and gguf (versions are written into each `golden.json`). A
folder for each case:

    config.json, model.safetensors   a Hugging Face folder; weights are bf16 numbers, run in f32
    golden.safetensors               input_ids, attention_mask, labels (i64 [2, 24]); logits (f32);
                                     lora.<name>: an adapter before the steps (bf16)
    golden.json                      loss, norm and first values of each gradient, greedy tokens,
                                     losses and gradient norms of the steps, GGUF names

The adapter is written out here (W + alpha / r B A on every linear layer but head and router) rather
than taken from PEFT, because PEFT has no names for experts that lie in one tensor; on dense models
the two are the same function.
"""

import json
import os
import sys
import zlib

import gguf
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.func import functional_call

R, ALPHA, STEPS, LR = 4, 8.0, 4, 1e-2
BASE = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2, dtype="float32")


def cases():
    t = transformers
    sizes = dict(hidden_size=32, intermediate_size=40, num_attention_heads=4, vocab_size=67)
    yield "llama-bias", t.LlamaForCausalLM, t.LlamaConfig(
        **BASE, **sizes, num_hidden_layers=2, num_key_value_heads=2, attention_bias=True,
        mlp_bias=True, hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True,
        rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=10000.0),
        max_position_embeddings=16)
    yield "mistral", t.MistralForCausalLM, t.MistralConfig(
        **BASE, **sizes, num_hidden_layers=2, num_key_value_heads=1, head_dim=12,
        sliding_window=5, max_position_embeddings=64)
    yield "qwen2", t.Qwen2ForCausalLM, t.Qwen2Config(
        **BASE, **sizes, num_hidden_layers=2, num_key_value_heads=2, tie_word_embeddings=True,
        max_position_embeddings=64, sliding_window=4)
    yield "qwen2-window", t.Qwen2ForCausalLM, t.Qwen2Config(
        **BASE, **sizes, num_hidden_layers=3, num_key_value_heads=4, use_sliding_window=True,
        sliding_window=6, max_window_layers=1, max_position_embeddings=64,
        rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=10000.0, mscale=0.7,
                             mscale_all_dim=1.2, original_max_position_embeddings=16,
                             truncate=False))
    yield "qwen3", t.Qwen3ForCausalLM, t.Qwen3Config(
        **BASE, **sizes, num_hidden_layers=2, num_key_value_heads=1, head_dim=10,
        attention_bias=True, max_position_embeddings=64)
    yield "gemma", t.GemmaForCausalLM, t.GemmaConfig(
        **BASE, **sizes, num_hidden_layers=2, num_key_value_heads=1, head_dim=16,
        max_position_embeddings=64)
    yield "gemma2", t.Gemma2ForCausalLM, t.Gemma2Config(
        **BASE, **sizes, num_hidden_layers=3, num_key_value_heads=1, head_dim=12,
        sliding_window=7, query_pre_attn_scalar=12, attn_logit_softcapping=3.0,
        final_logit_softcapping=None, max_position_embeddings=64)
    yield "gemma3", t.Gemma3ForCausalLM, t.Gemma3TextConfig(
        **BASE, **sizes, num_hidden_layers=4, num_key_value_heads=2, head_dim=14,
        sliding_window=6, query_pre_attn_scalar=14, max_position_embeddings=64,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
            sliding_attention=dict(rope_type="default", rope_theta=10000.0)))
    factors = dict(short_factor=[1.0, 1.05, 1.1, 1.3, 1.4, 2.0],
                   long_factor=[1.0, 1.5, 2.5, 4.0, 7.0, 9.0])
    for name, original in [("phi3", 16), ("phi3-short", 48)]:
        yield name, t.Phi3ForCausalLM, t.Phi3Config(
            **BASE, **{**sizes, "num_attention_heads": 2}, num_hidden_layers=2,
            num_key_value_heads=1, max_position_embeddings=96,
            original_max_position_embeddings=original, sliding_window=40,
            rope_parameters=dict(rope_type="longrope", rope_theta=10000.0,
                                 partial_rotary_factor=0.75, **factors,
                                 original_max_position_embeddings=original))
    yield "mixtral", t.MixtralForCausalLM, t.MixtralConfig(
        **BASE, **{**sizes, "intermediate_size": 24}, num_hidden_layers=2, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.02,
        output_router_logits=True, max_position_embeddings=64)
    yield "qwen2_moe", t.Qwen2MoeForCausalLM, t.Qwen2MoeConfig(
        **BASE, **sizes, num_hidden_layers=3, num_key_value_heads=2, num_experts=5,
        num_experts_per_tok=2, moe_intermediate_size=12, shared_expert_intermediate_size=20,
        decoder_sparse_step=1, mlp_only_layers=[1], norm_topk_prob=False,
        router_aux_loss_coef=0.01, output_router_logits=False, max_position_embeddings=64)
    yield "qwen3_moe", t.Qwen3MoeForCausalLM, t.Qwen3MoeConfig(
        **BASE, **sizes, num_hidden_layers=2, num_key_value_heads=1, head_dim=10, num_experts=6,
        num_experts_per_tok=3, moe_intermediate_size=12, norm_topk_prob=True,
        router_aux_loss_coef=0.05, output_router_logits=True, max_position_embeddings=64)


def random_weights(model, generator):
    """Weights of a size that keeps activations near 1, rounded to bf16."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1 and name.endswith("bias"):
            value = 0.3 * noise
        elif p.dim() == 1:
            is_offset = "gemma" in model.config.model_type
            value = (0.0 if is_offset else 1.0) + 0.2 * noise
        elif "embed_tokens" in name:
            value = 0.7 * noise
        else:
            value = noise / p.shape[-1] ** 0.5
        p.data = value.bfloat16().float()


def batch_of(config, generator):
    ids = torch.randint(3, config.vocab_size, (2, 24), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 17:] = 0
    ids[1, 17:] = config.pad_token_id
    labels = ids.clone()
    labels[:, :4] = -100
    labels[mask == 0] = -100
    return dict(input_ids=ids, attention_mask=mask, labels=labels)


def rows_of(batch):
    """Each sequence alone: a rotary scaling that depends on the length sees the right one."""
    for row in range(batch["input_ids"].shape[0]):
        n = int(batch["attention_mask"][row].sum())
        yield row, n, batch["input_ids"][row:row + 1, :n], batch["labels"][row:row + 1, :n]


def fresh_rope(model):
    """Dynamic scaling remembers the longest sequence so far: make it forget."""
    rope = model.model.rotary_emb
    if getattr(rope, "rope_type", None) == "dynamic":
        rope.max_seq_len_cached = rope.original_max_seq_len
        rope.inv_freq = rope.original_inv_freq


def cross_entropy(model, params, batch):
    """Mean over the labels: the balance loss is left out."""
    total, count = 0.0, 0
    for _, _, ids, labels in rows_of(batch):
        fresh_rope(model)
        logits = functional_call(model, params, kwargs=dict(input_ids=ids)).logits
        total = total + torch.nn.functional.cross_entropy(
            logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
        count += int((labels[0, 1:] != -100).sum())
    return total / count


def expert_part(name, config):
    """The names of one expert's linear layers within a fused tensor: (name, expert, rows)."""
    prefix = name.rsplit(".", 1)[0]
    is_mixtral = config.model_type == "mixtral"
    if is_mixtral:
        prefix = prefix.replace(".mlp.", ".block_sparse_moe.")
    n = config.num_local_experts if is_mixtral else config.num_experts
    f = config.intermediate_size if is_mixtral else config.moe_intermediate_size
    last = dict(gate="w1", up="w3", down="w2") if is_mixtral else dict(
        gate="gate_proj", up="up_proj", down="down_proj")
    for e in range(n):
        if name.endswith("gate_up_proj"):
            yield f"{prefix}.{e}.{last['gate']}", e, slice(0, f)
            yield f"{prefix}.{e}.{last['up']}", e, slice(f, 2 * f)
        else:
            yield f"{prefix}.{e}.{last['down']}", e, slice(None)


def adapted(model):
    """{module name: (parameter, expert or None, rows)} of every linear layer but the routers."""
    linears = {}
    for name, p in model.named_parameters():
        if name.startswith("lm_head") or "embed_tokens" in name:
            continue
        if name.endswith("mlp.gate.weight") or name.endswith("shared_expert_gate.weight"):
            continue
        if p.dim() == 3:
            for module, e, rows in expert_part(name, model.config):
                linears[module] = (name, e, rows)
        elif p.dim() == 2:
            linears[name.removesuffix(".weight")] = (name, None, slice(None))
    return linears


def with_adapter(base, linears, lora):
    params = dict(base)
    touched = {}
    for module, (name, e, rows) in linears.items():
        delta = ALPHA / R * lora[f"{module}.lora_B"] @ lora[f"{module}.lora_A"]
        if e is None:
            params[name] = base[name] + delta
        else:
            touched.setdefault(name, {})[(e, rows.start, rows.stop)] = delta
    for name, deltas in touched.items():
        whole = torch.zeros_like(base[name])
        parts = []
        for (e, start, stop), delta in deltas.items():
            pad = torch.zeros_like(whole)
            pad[e, start:stop] = 1
            full = torch.zeros(whole.shape[1:])
            full = torch.cat([full[:start or 0], delta, full[(stop or full.shape[0]):]])
            parts.append(pad * full[None])
        params[name] = base[name] + sum(parts)
    return params


def lora_steps(model, base, batch, generator):
    linears = adapted(model)
    lora = {}
    for module, (name, e, rows) in linears.items():
        weight = base[name] if e is None else base[name][e][rows]
        lora[f"{module}.lora_A"] = (torch.rand((R, weight.shape[1]), generator=generator) - 0.5)
        lora[f"{module}.lora_B"] = 0.1 * torch.randn((weight.shape[0], R), generator=generator)
    for key in lora:
        lora[key] = lora[key].bfloat16().float().requires_grad_()
    init = {key: value.detach().clone() for key, value in lora.items()}
    optimizer = torch.optim.AdamW(lora.values(), lr=LR, weight_decay=0.01)
    losses, norms, first = [], [], {}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = cross_entropy(model, with_adapter(base, linears, lora), batch)
        loss.backward()
        grads = {key: value.grad if value.grad is not None else torch.zeros_like(value)
                 for key, value in lora.items()}
        for key, value in lora.items():
            value.grad = grads[key]
        losses.append(loss.item())
        norms.append(sum(float(g.double().pow(2).sum()) for g in grads.values()) ** 0.5)
        if step == 0:
            first = {key: float(g.double().norm()) for key, g in grads.items()}
        optimizer.step()
    after = cross_entropy(model, with_adapter(base, linears, lora), batch).item()
    tensors = {f"lora.{k}": v.bfloat16() for k, v in init.items()}
    about = dict(r=R, alpha=ALPHA, lr=LR, weight_decay=0.01, losses=losses, grad_norm=norms,
                 loss_after=after, first_gradients=first)
    return tensors, about


GGUF = dict(llama="LLAMA", mistral="LLAMA", mixtral="LLAMA", qwen2="QWEN2", qwen3="QWEN3",
            qwen2_moe="QWEN2MOE", qwen3_moe="QWEN3MOE", gemma="GEMMA", gemma2="GEMMA2",
            gemma3_text="GEMMA3", phi3="PHI3")


def gguf_names(config, names):
    """How the gguf package calls the tensors of the folder, expert numbers left out."""
    arch = getattr(gguf.MODEL_ARCH, GGUF[config.model_type])
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    out = {}
    for name in names:
        # The package's converter stacks the experts under these names before it looks them up.
        merged = name
        for sep in [".experts."]:
            if sep in name:
                head, tail = name.split(sep)
                merged = f"{head}.experts.{tail.split('.', 1)[-1]}"
        found = table.get_name(merged, try_suffixes=(".weight", ".bias"))
        out[name] = found
    return out


def short(tensor):
    """The first eight values, with the digits that an f32 has."""
    return [float(f"{v:.8g}") for v in tensor.flatten()[:8].tolist()]


def aux_loss(model, batch):
    """The balance loss on the batch, and its gradient with respect to the routers."""
    config = model.config
    if not hasattr(config, "router_aux_loss_coef"):
        return None
    model.zero_grad()
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                labels=batch["labels"], output_router_logits=True)
    out.aux_loss.backward()
    grads = {name: p.grad.flatten() for name, p in model.named_parameters()
             if name.endswith("mlp.gate.weight")}
    return dict(aux_loss=out.aux_loss.item(), coef=config.router_aux_loss_coef,
                router_gradients={name: dict(l2=float(g.double().norm()), head=short(g))
                                  for name, g in grads.items()})


def make(name, cls, config, root):
    seed = zlib.crc32(name.encode())
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = cls(config).float().eval()
    random_weights(model, generator)
    folder = os.path.join(root, name)
    model.save_pretrained(folder)
    path = os.path.join(folder, "model.safetensors")
    stored = load_file(path)
    save_file({k: v.bfloat16() for k, v in stored.items()}, path, metadata={"format": "pt"})

    batch = batch_of(config, generator)
    params = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    loss = cross_entropy(model, params, batch)
    loss.backward()
    gradients = {k: dict(l2=float(v.grad.double().norm()), head=short(v.grad))
                 for k, v in params.items() if v.grad is not None}
    with torch.no_grad():
        logits = torch.zeros(2, 24, config.vocab_size)
        for row, n, ids, _ in rows_of(batch):
            fresh_rope(model)
            logits[row, :n] = model(input_ids=ids).logits[0]
        fresh_rope(model)
        prompt = batch["input_ids"][:1, :18]
        out = model.generate(prompt, max_new_tokens=16, do_sample=False, output_logits=True,
                             return_dict_in_generate=True, eos_token_id=None)
        new = []
        for token, scores in zip(out.sequences[0, 18:].tolist(), out.logits):
            top = scores[0].topk(2).values
            # Behind a near tie another order of additions may go another way.
            if top[0] - top[1] < 1e-3:
                break
            new.append(token)
    base = {k: v.detach() for k, v in params.items()}
    lora, about = lora_steps(model, base, batch, generator)
    save_file({**batch, "logits": logits, **lora}, os.path.join(folder, "golden.safetensors"))
    with open(os.path.join(folder, "golden.json"), "w") as f:
        json.dump(dict(
            seed=seed, loss=loss.item(), gradients=gradients,
            greedy=dict(prompt=prompt[0].tolist(), new=new),
            lora=about, aux=aux_loss(model, batch), gguf_names=gguf_names(config, stored),
            versions=dict(torch=torch.__version__, transformers=transformers.__version__,
                          gguf=getattr(gguf, "__version__", "?")),
        ), f)
        f.write("\n")
    print(name, "loss", loss.item(), "greedy", len(new), about["losses"])


if __name__ == "__main__":
    only = sys.argv[2:]
    for case_name, case_class, case_config in cases():
        if not only or case_name in only:
            make(case_name, case_class, case_config, sys.argv[1])
