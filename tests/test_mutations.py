"""Each part broken on purpose, in a listed way: the suite must turn red.  Slow: it runs once for each line below."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import conditioned_attention
from tests.triton_interpreter import KERNELS_RUN

SOURCE = Path(conditioned_attention.__file__).parent
ROOT = Path(__file__).parents[1]

OPERATOR, MODULES = "tests/attention/test_operator.py tests/attention/test_lean.py", "tests/test_modules.py"
CONVERSION = "tests/conversion/test_conversion.py"
HOOK, SDPA = "tests/conversion/test_hook.py", "tests/conversion/test_transformers_sdpa.py"
TORCHVISION, SURVIVAL = "tests/conversion/test_torchvision.py", "tests/conversion/test_survival.py"
TIMM, PERSISTENCE = "tests/conversion/test_timm.py", "tests/conversion/test_persistence.py"
INSPECTION, VERSIONS = "tests/test_inspection.py", "tests/conversion/test_versions.py"
SPECTRAL, CONTROLS = "tests/conversion/test_spectral.py", "tests/test_controls.py"
SUMMED, ADAPTERS = "tests/conversion/test_summed.py", "tests/conversion/test_adapters.py"
FOLD = "tests/conversion/test_fold.py"
LEARNED, VARIANTS = "tests/sites/test_learned.py", "tests/experiments/variants/test_variants.py"
JACOBIAN, WEIGHTS = "tests/measure/test_jacobian.py", "tests/measure/test_weights.py"
SPECTRA, WATCHING = "tests/measure/test_spectra.py", "tests/measure/test_watching.py"
ATTENTION_SPECTRA = "tests/measure/test_attention_spectra.py"
FUSED, FUSED_OPTIONS = "tests/attention/test_fused.py", "tests/attention/test_fused_options.py"
VARLEN, LEAN_ROWS = "tests/test_varlen.py", "tests/attention/test_lean.py"
OF_KERNELS = (FUSED, FUSED_OPTIONS, VARLEN, LEAN_ROWS)
PROTOCOLS, SETTINGS = "tests/experiments/training/test_protocols.py", "tests/experiments/training/test_settings.py"
ORDER, TRACKERS = "tests/experiments/training/test_order.py", "tests/experiments/training/test_trackers.py"
CHOICES, RECIPES = "tests/test_choices.py", "tests/experiments/recipes/test_recipes.py"
CLIP = "tests/sites/test_clip.py"
MODELS = "tests/experiments/models/test_models.py"
WORKERS, STATISTICS = "tests/experiments/runs/test_workers.py", "tests/experiments/evidence/test_statistics.py"
TUNING = "tests/experiments/runs/test_tuning.py"
BLOCKS, OUTCOMES = "tests/experiments/evidence/test_blocks.py", "tests/experiments/evidence/test_outcomes.py"
RECALL, BURGERS = "tests/experiments/recipes/test_recall.py", "tests/experiments/recipes/test_burgers.py"
REGRESSION = "tests/experiments/recipes/test_in_context_regression.py"
D_OPTIMAL, BOUNDS = "tests/test_d_optimal.py", "tests/measure/test_bounds.py"

# What is broken, file, the words there, the words instead, and the tests that must notice
MUTATIONS = [
    ("zero rows get 1/eps", "preconditioner.py", "torch.threshold(norm, 0.0, 1.0)", "norm", OPERATOR),
    ("C sends a gradient", "preconditioner.py", 'rows.detach() if gradient == "stopped" else rows', "rows", OPERATOR),
    ("C is half precision", "preconditioner.py", "return (output / norm).to(output.dtype)", "return output / norm.to(output.dtype)", OPERATOR),
    ("norms in half precision", "preconditioner.py", "dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32", "dtype = rows.dtype", OPERATOR),
    ("weight norm for zero rows", "preconditioner.py", "if smallest.item() >= eps and largest.item() < math.inf:", "if True:", OPERATOR),
    ("eps below float16", "preconditioner.py", "max(self.eps, _FLOAT16_EPS) if dtype == torch.float16 else self.eps", "self.eps", OPERATOR),
    ("norms overflow", "preconditioner.py", "largest = torch.finfo(dtype).max", "largest = math.inf", OPERATOR),
    ("rows of the wrong order", "preconditioner.py", "return matrix.view(b, n, h, -1).transpose(1, 2)", "return matrix.view(b, h, n, -1)", OPERATOR),
    ("composed without C", "attention/composed.py", "return transform(output)", "return output", OPERATOR),
    ("composed, mask dropped", "attention/composed.py", "query, key, value, attn_mask, dropout_p, is_causal, scale=scale", "query, key, value, None, dropout_p, is_causal, scale=scale", OPERATOR),
    ("composed, scale dropped", "attention/composed.py", "scale=scale, enable_gqa", "enable_gqa", OPERATOR),
    ("weights, masked rows", "attention/composed.py", "dim=-1).masked_fill(nothing, 0.0)", "dim=-1)", OPERATOR),
    ("weights, no dropout", "attention/composed.py", "weights = F.dropout(weights, dropout_p)", "pass", OPERATOR),
    ("causal drops the mask", "attention/arguments.py", "seen = mask & seen if", "seen = seen if", OPERATOR),
    ("causal sees the next", "attention/arguments.py", "return seen.tril()", "return seen.tril(1)", OPERATOR),
    ("float32 mask misread", "attention/arguments.py", "attn_mask = attn_mask.double()", "pass", OPERATOR),
    ("lean, C unfolded", "attention/lean/steps.py", ".add_(norm.squeeze(-1).log())", ".sub_(norm.squeeze(-1).log())", OPERATOR),
    ("lean, C not in dY", "attention/lean/steps.py", "y * norm, upstream / norm", "y * norm, upstream", OPERATOR),
    ("lean, A not rebuilt", "attention/lean/steps.py", "y * norm, upstream / norm", "y, upstream / norm", OPERATOR),
    ("lean, half A not rebuilt", "attention/lean/steps.py", "torch.mul(y, norm, out=torch.empty_like(y))", "y", OPERATOR),
    ("lean, folds in float32", "attention/lean/steps.py", "return y.dtype in (torch.float16, torch.bfloat16)", "return True", OPERATOR),
    ("lean, through is stopped", "attention/lean/steps.py", 'if gradient == "through":', "if False:", OPERATOR),
    ("lean, removes below eps", "attention/lean/steps.py", "(along * (norm > eps))", "along", OPERATOR),
    ("lean, strides of dY", "attention/lean/steps.py", "unit_stride(upstream)", "upstream", OPERATOR),
    ("lean, strides of q", "attention/lean/contract.py", "(unit_stride(four(t)) for t", "(four(t) for t", OPERATOR),
    ("lean, mask turned round", "attention/lean/contract.py", "masked_fill_(~mask", "masked_fill_(mask", OPERATOR),
    ("lean, mask not spread", "attention/lean/contract.py", "if mask.shape[-2:] != sizes:", "if False:", OPERATOR),
    ("lean, empty not refused", "attention/arguments.py", "if tensor.numel() == 0:", "if False:", OPERATOR),
    ("lean, heads not compared", "attention/arguments.py", "if query.shape[:-heads] != key.shape[:-heads]", "if False", OPERATOR),
    ("lean, dropout ignored", "attention/lean/contract.py", "if arguments.dropout_p > 0:", "if False:", OPERATOR),
    ("lean, cuDNN not refused", "attention/lean/contract.py", "if choice == _CUDNN:", "if False:", "tests/attention/test_cuda_operators.py"),
    ("lean, learned bias", "attention/lean/contract.py", "if mask is not None and mask.requires_grad", "if False and mask.requires_grad", OPERATOR),
    ("lean, keeps two tensors", "attention/lean/attend.py", "query, key, value, mask, *output)", "query.clone(), key, value, mask, *output)", OPERATOR),
    ("lean in an export", "attention/lean/contract.py", "if torch.compiler.is_exporting()", "if False", OPERATOR),
    ("flash, mask in forward only", "attention/lean/flash.py", "output, lse, 0.0, call.is_causal, attn_mask=mask", "output, lse, 0.0, call.is_causal, attn_mask=None", OPERATOR),
    ("lean, overwrites what a mode keeps", "attention/lean/steps.py", "if torch._C._len_torch_dispatch_stack():", "if False:", OPERATOR),
    ("lean, compiled keeps too little", "attention/lean/steps.py", "ctx.save_for_backward(query, key, value, mask, *output)", "ctx.save_for_backward(query.clone(), key, value, mask, *output)", OPERATOR),
    ("flash, padded statistics", "attention/lean/steps.py", "lse[..., : norm.shape[-2]].add_", "lse.add_", OPERATOR),
    ("module without C", "modules.py", "return behind(transform, output, weights), weights", "return output, weights", MODULES),
    ("module without guard", "modules.py", "self.__dict__[TRANSFORM] = transform\n        guard(self)", "self.__dict__[TRANSFORM] = transform", MODULES),
    ("conversion without guard", "sites/torch_nn/heads.py", "\n        guard(module)", "", MODULES),
    ("hook, left on what was wrapped", "sites/hook.py", "self.hook.put_on(module, module.__dict__[TRANSFORM])", "pass", HOOK),
    ("hook, behind those of others", "sites/hook.py", "hooks.move_to_end(HOOK_KEY, last=False)", "pass", HOOK),
    ("hook, heads and width exchanged", "sites/hook.py", "y = y.unflatten(i, (-1, heads))", "y = y.unflatten(i, (heads, -1))", HOOK),
    ("hook, passed by unnoticed", "sites/hook.py", "if not self.rewrite.passed:", "if False:", HOOK),
    ("hook, shared projection", "sites/table.py", "sites = _without_shared(sites)", "pass", HOOK),
    ("timm, heads and width exchanged", "sites/timm/heads.py", '"B N D*H"', '"B N H*D"', TIMM),
    ("timm, tokens for channels", "sites/timm/heads.py", ', along="N"', "", TIMM),
    ("rows head by head as one block", "sites/projections.py", 'heads if roles.startswith("H*") else 1', "1", "tests/sites"),
    ("timm, LeViT's images as tokens", "sites/timm/heads.py", "_IMAGE if module.use_conv else _TOKENS", "_TOKENS", TIMM),
    ("pools converted unasked", "conversion/selection.py", "if not site.opt_in or active_transform(site) is not None", "if True", TIMM),
    ("compiled code not forgotten", "sites/table.py", "torch.compiler.reset()", "pass", HOOK),
    ("module, mask inverted", "modules.py", "masked_fill_(mask, -math.inf)", "masked_fill_(~mask, -math.inf)", MODULES),
    ("module, dropout in eval", "modules.py", "self.dropout if self.training else 0.0", "self.dropout", MODULES),
    ("restore, changed classes", "sites/swap.py", "if isinstance(module, self.conditioned) and bare_class(module) is not self.conditioned:", "if False:", CONVERSION),
    ("hook, moved by quantization", "sites/hook.py", "if isinstance(hook, _Rewrite)]", "if key == HOOK_KEY]", SURVIVAL),
    ("Swin, rolled tokens meet", "sites/torchvision/forwards.py", "masked_fill(apart, -100.0)", "masked_fill(apart, 0.0)", TORCHVISION),
    ("Swin V2, bias of the keys", "sites/torchvision/forwards.py", "torch.cat((q, torch.zeros_like(k), v))", "bias", TORCHVISION),
    ("MViT, queries not added", "sites/torchvision/forwards.py", "if self.residual_pool:", "if False:", TORCHVISION),
    ("transformers, causal flag lost", "sites/transformers/sdpa.py", "attention_mask is None and causal(module, is_causal)", "False", SDPA),
    ("transformers, mask lost", "sites/transformers/sdpa.py", "key, value, attention_mask, dropout, flag", "key, value, None, dropout, flag", SDPA),
    ("transformers, scale lost", "sites/transformers/sdpa.py", "scale=scaling", "scale=None", SDPA),
    ("guard compares nothing", "conversion/guard.py", "elif _record(theirs) != _record(module._buffers[GUARD])", "elif False", PERSISTENCE),
    ("guard not demanded", "conversion/guard.py", "if theirs is None:", "if False:", PERSISTENCE),
    ("guard does not follow", "conversion/persistence.py", "for part in [part for part in model.modules() if is_guarded(part)]", "for part in []", PERSISTENCE),
    ("checkpoint without its mark", "conversion/persistence.py", "config.attn_implementation = MARKER", "pass", PERSISTENCE),
    ("marks not put back", "sites/transformers/marker.py", "setattr(part.config, NAME, MARKER)", "pass", PERSISTENCE),
    ("mark not known", "__init__.py", "watch()  #", "pass  #", PERSISTENCE),
    ("temporary conversion stays", "conversion/report.py", "self._undo()", "pass", CONVERSION),
    ("changed implementation unnoticed", "sites/transformers/interface.py", "if not is_conditioned(name):", "if False:", CONVERSION),
    ("versions not looked at", "sites/versions.py", "<= _numbers(installed) < _numbers(end)", "<= _numbers(installed)", VERSIONS),
    ("inspect, refusals overlooked", "inspection/inspect.py", 'row.conversion != "refused"', 'row.conversion != ""', INSPECTION),
    ("corrected, per_head ignored", "sites/correction.py", "self.widths[role] if self.spectral.per_head else None", "None", SPECTRAL),
    ("corrected, W + C for everybody", "sites/summed.py", "return _sum(owner, weight, correction) if shown else weight", "return _sum(owner, weight, correction)", SUMMED),
    ("corrected, by the stack alone unseen", "sites/summed.py", "if called is owner or isinstance(called, correction.attention):", "if called is owner:", SUMMED),
    ("corrected, threads share sums", "sites/summed.py", "class _Thread(threading.local):", "class _Thread:", SUMMED),
    ("corrected, forward called past hooks", "sites/summed.py", 'code is _CALL or code.co_name == "forward"', "code is _CALL", SUMMED),
    ("corrected, a class that stays", "sites/summed.py", "        owner.__class__ = bare_class(owner)", "        pass", SUMMED),
    ("corrected, lost where heads are converted", "sites/site.py", "module.__class__ = cls if derive is None else derive(cls)", "module.__class__ = cls", SUMMED),
    ("corrected, a constant in traces", "sites/summed.py", "if parameter in owner._parameters:\n", "if False:\n", SUMMED),
    ("corrected, a projection of others", "conversion/shared.py", "if other is not holder]", "if False]", SUMMED),
    ("corrected, another module in its place", "sites/corrected.py", "if not is_added(owner, correction):", "if False:", ADAPTERS),
    ("corrected, quantized later", "sites/summed.py", "if reason := not_to_add_to(weight):", "if False:", ADAPTERS),
    ("adapters, all let in", "sites/adapters.py", 'tuner not in ("", *_SHARED, *_ADDING):', "False:", ADAPTERS),
    ("adapters, DoRA let in", "sites/adapters.py", 'name == "peft.tuners.lora.dora" or', "False or", ADAPTERS),
    ("adapters, merged with C", "sites/adapters.py", "return len(functions) > 1 or", "return False and", ADAPTERS),
    ("adapters, there before", "sites/adapters.py", "while isinstance(inner := getattr(module, \"base_layer\", None), nn.Module):", "while isinstance(inner := None, nn.Module):", ADAPTERS),
    ("fold, once for each module", "conversion/addition.py", "        if same is None:", "        if True:", FOLD),
    ("fold, one of two corrections", "conversion/addition.py", "elif not _equal(same, addition):", "elif False:", FOLD),
    ("fold, a weight of others", "conversion/addition.py", "if weight is None or (id(module), parameter) in owners:", "if True:", FOLD),
    ("fold, another parameter over its memory", "conversion/addition.py", "return start < other_end and other_start < end", "return False", FOLD),
    ("corrected, unfold adds", "conversion/addition.py", "sign * self.correction.of(self.owner)", "self.correction.of(self.owner)", SPECTRAL),
    ("spectral, ten by default", "conversion/spectral.py", "strength: float | str | None = AUTO,", "strength: float | str | None = None,", SPECTRAL),
    ("polar, without the largest value", "spectral.py", "strength * s[..., :1, None] * (u @ vh)", "strength * (u @ vh)", SPECTRAL),
    ("effect not looked at", "sites/table.py", "check_effect(site.module)", "pass", SPECTRAL),
    ("effect, anything will do", "sites/effect.py", "8 * torch.finfo(matrix.dtype).eps", "1e9", SPECTRAL),
    ("fold, rounding away weights", "conversion/spectral.py", "            _check_precision(addition)", "            pass", SPECTRAL),
    ("spectral, two corrections", "conversion/spectral.py", "if present not in (None, wanted):", "if False:", SPECTRAL),
    ("spectral, no warning", "conversion/spectral.py", "        self._warn(sites)", "        pass", SPECTRAL),
    ("power norm, gradient not stopped", "controls.py", ".floor(output.dtype)) ** self.alpha", ".floor(output.dtype), gradient='through') ** self.alpha", CONTROLS),
    ("QK-norm of queries alone", "controls.py", "F.rms_norm(key, key.shape[-1:], eps=self.eps)", "key", CONTROLS),
    ("gate, without the factor 2", "sites/learned.py", "2 * torch.sigmoid", "torch.sigmoid", LEARNED),
    ("gate, as wide as the values' input", "sites/learned.py", 'if "q" in weight.roles', 'if "v" in weight.roles', LEARNED),
    ("gate, holds on to its input", "sites/learned.py", "attention.__dict__.pop(_INPUT, None)", "pass", LEARNED),
    ("spectral, of all roles", "sites/correction.py", "if role in self.spectral.roles]", "if True]", SPECTRAL),
    ("spectral, weights of all roles", "sites/correction.py", "weights = projections.of(spectral.roles).weights", "weights = projections.weights", SPECTRAL),
    ("QK-Clip, never called", "experiments/training/step.py", "if self.after is not None:", "if False:", VARIANTS),
    ("QK-Clip, small logits too", "sites/clip.py", "torch.where(largest > threshold, threshold / largest, 1.0)", "threshold / largest", CLIP),
    ("QK-Clip, the factor twice", "sites/clip.py", '"q": factor if shared else factor.sqrt()', '"q": factor', CLIP),
    ("QK-Clip, shared keys too", "sites/clip.py", "shared = rows_of_keys < projections.heads * width", "shared = False", CLIP),
    ("QK-Clip, biases stay", "sites/clip.py", "isinstance(bias, Tensor) and len(bias) == len(matrix)", "False", CLIP),
    ("QK-Clip, the last micro-batch alone", "sites/clip.py", "seen if before is None else torch.maximum(seen, before)", "seen", CLIP),
    ("QK-Clip, in evaluation", "sites/clip.py", "if attention.training:", "if True:", CLIP),
    ("QK-Clip, each process for itself", "sites/clip.py", "    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)\n", "", CLIP),
    ("temperature, not of the head", "sites/learned.py", "temperature.exp()[:, None, None]", "temperature.exp().mean()", LEARNED),
    ("temperature, may be negative", "sites/learned.py", "temperature.exp()", "(1 + temperature)", LEARNED),
    ("temperature, not passed on", "sites/learned.py", "return self.asked.changes_queries", "return False", LEARNED),
    ("learned power, norms in the gradient", "sites/learned.py", "row_norm(output, RowNorm(eps=self.eps).floor(output.dtype))", "row_norm(output, RowNorm(eps=self.eps).floor(output.dtype), gradient='through')", LEARNED),
    ("learned power, without gradient", "sites/learned.py", "norm ** alpha[:, None, None]", "norm ** alpha.detach()[:, None, None]", LEARNED),
    ("learned, parameters stay", "sites/table.py", "transform.settings.end(site.module)", "pass", LEARNED),
    ("learned, begun anew", "sites/learned.py", "if self.parameter not in attention._parameters:", "if True:", LEARNED),
    ("Jacobian, covariance not about the means", "measure/numbers/jacobian.py", "(right - of_right)", "right", JACOBIAN),
    ("Jacobian, once is enough", "measure/numbers/lanczos.py", "for _ in range(2)", "for _ in range(1)", JACOBIAN),
    ("weights, as if not corrected", "measure/probing/projections.py", "with shown(site.module):", "if True:", WEIGHTS),
    ("identity_init, C stays fixed", "experiments/variants/changes.py", "        fold(model)", "        pass", VARIANTS),
    ("constant_gain, not the mean", "experiments/variants/changes.py", ".mean().item()", ".amax().item()", VARIANTS),
    ("conditioned_init, all heads as one", "experiments/variants/initialise.py", "heads = len(rows) // widths[role]", "heads, widths = 1, {role: len(rows)}", VARIANTS),
    ("conditioned_init, values left", "experiments/variants/initialise.py", "drawn = torch.eye(features)[columns]", "drawn = matrix[rows]", VARIANTS),
    ("C with QK-norm, without C", "controls.py", "return RowNorm(eps=self.eps)(output)", "return output", CONTROLS),
    ("orthogonal_init, another norm", "experiments/variants/initialise.py", "(drawn * scale).to(matrix)", "drawn.to(matrix)", VARIANTS),
    ("D-optimal, no ridge", "d_optimal.py", "_RIDGE = 1e-12", "_RIDGE = 0.0", D_OPTIMAL),
    ("D-optimal, M at uniform weights", "d_optimal.py", "(p.unsqueeze(-1) * unit)", "unit", D_OPTIMAL),
    ("D-optimal, zero rows lose their weight", "d_optimal.py", "return torch.where(zero, p, rest *", "return torch.where(zero, 0.0, rest *", D_OPTIMAL),
    ("D-optimal, gradient through the weights", "d_optimal.py", "output = output.detach()", "pass", D_OPTIMAL),
    ("rows mixed in a causal module", "sites/site.py", "if transform.mixes_rows and _says_causal(self.module):", "if False:", D_OPTIMAL),
    ("rows mixed in a causal call", "functional.py", "check_rows(transform, causal=is_causal, masked=", "check_rows(transform, causal=False, masked=", D_OPTIMAL),
    ("rows mixed under padding", "sites/transformers/interface.py", "check_rows(transform, masked=mask is not None)", "pass", D_OPTIMAL),
    ("a start after what it would fold", "experiments/variants/variant.py", "if two.initial and not one.initial:", "if False:", VARIANTS),
    ("two changes of the same heads", "experiments/variants/variant.py", "if one.of == two.of and _meet(one, two):", "if False:", VARIANTS),
    ("variants, patterns forgotten", "experiments/variants/changes.py", '"exclude": self.exclude, "strict"', '"exclude": None, "strict"', VARIANTS),
    ("any word will do", "choices.py", "and word not in words:", "and False:", CHOICES),
    ("where data lie is a setting", "storage/settings.py", "_PLACE in field.metadata or", "False or", RECIPES),
    ("a new default is not written", "storage/settings.py", "default if before is _DEFAULT else before", "default", RECIPES),
    ("start, library's too", "experiments/models/start.py", 'None if self.init == "library"', "None if False", MODELS),
    ("start, drawn as the library draws", "experiments/models/start.py", "torch.Generator().manual_seed(seed)", "None", MODELS),
    ("start, tokens left out", "experiments/models/start.py", "if parameter.dim() > 1:", "if parameter.dim() == 2:", MODELS),
    ("start, of another width", "experiments/models/start.py", "USUAL_WIDTH / width", "width / USUAL_WIDTH", MODELS),
    ("start, keys left as they are", "experiments/models/start.py", '"k": self.qk_scale', '"k": 1.0', MODELS),
    ("start, W_O left as it is", "experiments/models/start.py", "residual * self.vo_scale", "residual", MODELS),
    ("start, GPT-2 scaled twice", "experiments/models/start.py", "if library_scales and seed is None else 1.0", "if False else 1.0", MODELS),
    ("norms of another eps", "experiments/models/vision_transformer.py", 'ViTConfig.layer_norm_eps if self.init == "library" else _NORM_EPS', "ViTConfig.layer_norm_eps", MODELS),
    ("mean over the class token too", "experiments/models/mean_pooled.py", "tokens[:, 1:]", "tokens", MODELS),
    ("norm behind the sum, of the branch alone", "experiments/models/post_norm.py", "self.norm2(x + self.mlp(x))", "x + self.norm2(self.mlp(x))", MODELS),
    ("mean before the norm", "experiments/models/vision_transformer.py", "fc_norm=False", "fc_norm=None", MODELS),
    ("a task for every run", "experiments/commands.py", "@cached_property", "@property", RECIPES),
    ("data sent to workers", "experiments/commands.py", 'if name != "task"', "if True", RECIPES),
    ("data read again", "experiments/commands.py", "task or recipe.task(), recipe.training", "recipe.task(), recipe.training", RECIPES),
    ("workers killed without a word", "experiments/runs/workers.py", "process.terminate()", "process.kill()", WORKERS),
    ("workers that outlive their parent", "experiments/runs/workers.py", "    os._exit(1)", "    pass", WORKERS),
    ("workers started for ever", "experiments/runs/workers.py", "(self.ever_ready or not self.ever_died)", "True", WORKERS),
    ("rows mixed on text", "experiments/variants/variant.py", "if causal and variant.mixes_rows:", "if False:", VARIANTS),
    ("Theorem 4.3 without its n", "measure/numbers/bounds.py", "0.5 * math.log(n) + bound", "bound", BOUNDS),
    ("Theorem 4.4 turned round", "measure/numbers/bounds.py", "return n <= d", "return n >= d", BOUNDS),
    ("FLOPs of one head only", "measure/numbers/bounds.py", "return n * (2 * d + heads)", "return n * (2 * d + 1)", BOUNDS),
    ("stable rank without the root's square", "measure/numbers/spectra.py", ".square().sum(-1)\n\n    @property\n    def effective", ".sum(-1)\n\n    @property\n    def effective", SPECTRA),
    ("the floor of another dtype", "measure/numbers/spectra.py", "torch.finfo(matrix.dtype).eps", "torch.finfo(torch.float64).eps", SPECTRA),
    ("too few steps of Lanczos", "measure/numbers/randomised.py", "steps = min(k, _steps(k, share, failure / 2))", "steps = 3", SPECTRA),
    ("log μ without its Frobenius norm", "measure/numbers/randomised.py", "k / 2 * math.log(k)", "0.0", SPECTRA),
    ("weights, later keys seen", "measure/numbers/attention_weights.py", "logits = logits.masked_fill(later, -math.inf)", "pass", ATTENTION_SPECTRA),
    ("weights, an error of nothing", "measure/numbers/attention_weights.py", "error = torch.linalg.vector_norm(back - v * sigma, dim=0)", "error = 0 * sigma", ATTENTION_SPECTRA),
    ("samples, the first ones only", "measure/monitoring/monitor.py", "rows = spread(self.samples, before.shape[0])", "rows = list(range(min(self.samples, before.shape[0])))", WATCHING),
    ("every process writes", "measure/monitoring/monitor.py", "distributed.get_rank() == 0", "True", WATCHING),
    ("the alarm before the file", "measure/monitoring/monitor.py", "        self._keep(new)\n", "        for alarm in alarms_of(new, self.max_kappa, self.max_scale):\n            self.on_alarm(alarm)\n        self._keep(new)\n", WATCHING),
    ("NaN for the floor", "measure/monitoring/records.py", "and not nothing_finite else", "else", WATCHING),
    ("half precision as it is", "measure/probing/probe.py", "copy = tensor.detach().to(dtype)", "copy = tensor.detach()", WATCHING),
    ("compiled code probed", "measure/probing/probe.py", 'torch.compiler.set_stance("force_eager")', "nullcontext()", WATCHING),
    ("hooks that wait for an end", "measure/probing/probe.py", "stop_after if _may_stop(model) else None", "stop_after", WATCHING),
    ("the forward pass goes on", "measure/monitoring/monitor.py", "stop_after=last", "stop_after=None", WATCHING),
    ("the last line lost", "storage/json_lines.py", 'lines = lines if file.read(1) == b"\\n" else "\\n" + lines', "file.read(1)", WATCHING),
    ("Parquet, not replaced", "measure/monitoring/sinks.py", "unfinished.replace(file)", "pass", WATCHING),
    ("the worst heads, last", "inspection/heads.py", "key=lambda r: (-r.kappa_before", "key=lambda r: (r.kappa_before", INSPECTION),
    ("text, windows of any length", "inspection/inputs.py", "if len(window) == len(windows[0])", "if True", INSPECTION),
    ("evaluation moves training's chance", "experiments/training/evaluation.py", 'torch.random.fork_rng(), seeded("evaluation", *key)', "torch.no_grad()", PROTOCOLS),
    ("mixup of the evaluation set", "experiments/training/loop.py", "collate_fn=self.task.collate,", "collate_fn=self.task.collate_train,", PROTOCOLS),
    ("the last of equal scores", "experiments/training/evaluation.py", "sign * score > sign * self.score", "sign * score >= sign * self.score", PROTOCOLS),
    ("tested with the last weights", "experiments/training/loop.py", "self.evaluated_model.load_state_dict(best.weights)", "pass", PROTOCOLS),
    ("best weights forgotten", "experiments/training/position.py", 'self.best.weights = extra["best"]', "pass", PROTOCOLS),
    ("a start that is no part of a run", "experiments/training/loop.py", '({} if start is None else {"start": start.identity})', "{}", PROTOCOLS),
    ("starts changed again", "experiments/training/start.py", "initialise=False", "initialise=True", PROTOCOLS),
    ("checkpoints at any price", "experiments/training/position.py", "max(self.seconds, self.took / SHARE)", "self.seconds", PROTOCOLS),
    ("epochs of growing batches", "experiments/training/loop.py", "start_at(self.here.taken * self.settings.micro_batch", "start_at(self.here.step * self.settings.batch_size", PROTOCOLS),
    ("cls_token decays", "experiments/training/optimizer.py", "and name not in still", "", SETTINGS),
    ("Muon without its state", "experiments/training/optimizer.py", "super().load_state_dict(state_dict)\n        self._share()", "super().load_state_dict(state_dict)", SETTINGS),
    ("projections of a run that was killed", "experiments/training/watching.py", "in (self.conditions, self.projections)", "in (self.conditions,)", VARIANTS),
    ("kernels, C left out", "attention/triton/forward.py", "return attention / length[:, None], length", "return attention, length", FUSED),
    ("kernels, zero rows get 1/eps", "attention/triton/forward.py", "tl.where(length == 0.0, 1.0, tl.minimum(tl.maximum(length, eps), LARGEST))", "tl.minimum(tl.maximum(length, eps), LARGEST)", FUSED),
    ("kernels, norms overflow", "attention/triton/forward.py", "tl.minimum(tl.maximum(length, eps), LARGEST)", "tl.maximum(length, eps)", FUSED),
    ("kernels, C unfolded", "attention/triton/forward.py", "log_sum += tl.log2(length)", "log_sum -= tl.log2(length)", FUSED),
    ("kernels, old sum not shrunk", "attention/triton/forward.py", "acc * shrink[:, None]", "acc", FUSED),
    ("kernels, nothing to attend to", "attention/triton/forward.py", 'tl.where(new_top == float("-inf"), 0.0, new_top)', "new_top", FUSED),
    ("kernels, scale lost", "attention/triton/forward.py", "new_top = tl.maximum(top, tl.max(logits, 1) * factor)\n            logits *= factor", "new_top = tl.maximum(top, tl.max(logits, 1))", FUSED),
    ("kernels, dropout not made up for", "attention/triton/forward.py", "        attention *= keep\n", "        attention *= 1.0\n", FUSED_OPTIONS),
    ("kernels, squares not shrunk", "attention/triton/forward.py", "squares * shrink * shrink", "squares * shrink", FUSED_OPTIONS),
    ("kernels, C of the weights from the output", "attention/triton/forward.py", "length = tl.sqrt(squares) / denominator", "length = tl.sqrt(tl.sum(attention * attention, 1))", FUSED_OPTIONS),
    ("kernels, δ of y", "attention/triton/backward.py", "inner = tl.sum(gradient * unit, 1) * length", "inner = tl.sum(gradient * unit, 1)", FUSED),
    ("kernels, removes below eps", "attention/triton/backward.py", "tl.where(length > eps, tl.sum(unit * gradient, 1), 0.0)", "tl.sum(unit * gradient, 1)", FUSED),
    ("kernels, C not in dY", "attention/triton/backward.py", "gradient /= length[:, None]", "pass", FUSED),
    ("kernels, no pull of the weights", "attention/triton/backward.py", "d_weights -= pull * (weights * kept)", "pass", FUSED_OPTIONS),
    ("kernels, pull below eps", "attention/triton/backward.py", "tl.where(length > eps, along, 0.0)", "along", FUSED_OPTIONS),
    ("kernels, dV of what was dropped", "attention/triton/backward.py", "        met = weights  # the values\n        if OPT.DROPOUT:\n            met *= kept\n", "        met = weights\n", FUSED_OPTIONS),
    ("kernels, dS of what was dropped", "attention/triton/backward.py", "    if OPT.DROPOUT:\n        d_weights *= kept\n", "", FUSED_OPTIONS),
    ("kernels, one query head of a group", "attention/triton/backward.py", "tl.range(0, REPEATS)", "tl.range(0, 1)", FUSED),
    ("kernels, dK without the scale", "attention/triton/backward.py", "d_key * scale", "d_key", FUSED),
    ("kernels, dQ without the scale", "attention/triton/backward.py", "d_query * scale", "d_query", FUSED),
    ("kernels, parts of a mask twice", "attention/triton/backward.py", "tl.range(split, sharing, SPLITS)", "tl.range(0, sharing, SPLITS)", FUSED),
    ("kernels, causal, first query", "attention/triton/backward.py", "first = start_m // OPT.BLOCK_N * OPT.BLOCK_N", "first = (start_m // OPT.BLOCK_N + 1) * OPT.BLOCK_N", FUSED),
    ("kernels, causal, guarded queries", "attention/triton/backward.py", "whole = blocks * OPT.BLOCK_N", "whole = first", FUSED),
    ("kernels, window, last query", "attention/triton/backward.py", "start_m + OPT.BLOCK_M - 1 + window)", "start_m + window)", FUSED_OPTIONS),
    ("kernels, window, first query", "attention/triton/backward.py", "first = tl.maximum(start_m - window + 1, 0) // OPT.BLOCK_N * OPT.BLOCK_N", "first = start_m // OPT.BLOCK_N * OPT.BLOCK_N", FUSED_OPTIONS),
    ("kernels, causal sees the next", "attention/triton/blocks.py", "tl.where(m <= n, logits", "tl.where(m <= n + 1, logits", FUSED),
    ("kernels, causal, whole blocks", "attention/triton/blocks.py", "tl.minimum(start_n + 1, M) // OPT.BLOCK_M", "tl.minimum(start_n + OPT.BLOCK_N, M) // OPT.BLOCK_M", FUSED),
    ("kernels, window one too wide", "attention/triton/blocks.py", "(m - n < window) & (n - m < window)", "(m - n <= window) & (n - m <= window)", FUSED_OPTIONS),
    ("kernels, window, first key", "attention/triton/blocks.py", "first = tl.maximum(start_n - window + 1, 0) //", "first = tl.maximum(start_n, 0) //", FUSED_OPTIONS),
    ("kernels, window, last key", "attention/triton/blocks.py", "end = tl.minimum(end, start_n + OPT.BLOCK_N - 1 + window)", "end = tl.minimum(end, start_n + OPT.BLOCK_N)", FUSED_OPTIONS),
    ("kernels, keys beyond the last", "attention/triton/blocks.py", 'logits = tl.where(m < M, logits, float("-inf"))', "pass", FUSED),
    ("kernels, the smallest number", "attention/triton/blocks.py", "tl.where(bias < -LARGEST, -LARGEST, bias)", "bias", FUSED),
    ("kernels, widths not padded", "attention/triton/blocks.py", "tl.load(pointers, mask=j < WIDTH, other=0.0)", "tl.load(pointers)", FUSED),
    ("kernels, odd last block", "attention/triton/blocks.py", "tl.load(pointers, mask=i < count - start, other=0.0)", "tl.load(pointers)", FUSED),
    ("kernels, dropout alike in all rows", "attention/triton/blocks.py", "row * M + m, _ROUNDS", "m, _ROUNDS", FUSED_OPTIONS),
    ("kernels, packed, first token", "attention/triton/blocks.py", "return pointer + start + tl.cast(first, tl.int64) * strides[2]", "return pointer + start", VARLEN),
    ("kernels, packed, rows of another", "attention/triton/blocks.py", "return tl.cast(h, tl.int64) * N + first", "return tl.cast(h, tl.int64) * N", VARLEN),
    ("kernels, parts, not shrunk", "attention/triton/decode.py", "acc = acc * shrink[:, None] + part_acc * more[:, None]", "acc = acc + part_acc * more[:, None]", FUSED_OPTIONS),
    ("kernels, parts, all of them", "attention/triton/decode.py", "tl.range(0, parts)", "tl.range(0, 1)", FUSED_OPTIONS),
    ("kernels, parts, another head's mask", "attention/triton/decode.py", "mask_rows = tl.cast(h, tl.int64) * mask_strides[1]", "mask_rows = tl.cast(g, tl.int64) * mask_strides[1]", FUSED_OPTIONS),
    ("kernels, rows, C unfolded", "attention/triton/rows.py", "other=0.0) + tl.log(length)", "other=0.0) - tl.log(length)", LEAN_ROWS),
    ("kernels, rows, C left out", "attention/triton/rows.py", "rows / length[:, None]", "rows", LEAN_ROWS),
    ("kernels, rows, zero rows get 1/eps", "attention/triton/rows.py", "tl.where(length == 0.0, 1.0, tl.minimum(tl.maximum(length, eps), LARGEST))", "tl.maximum(length, eps)", LEAN_ROWS),
    ("fused, folds in float32", "attention/fused/launch.py", "return tensor.dtype == torch.bfloat16", "return tensor.dtype != torch.float16", FUSED),
    ("fused, folds in float16", "attention/fused/launch.py", "return tensor.dtype == torch.bfloat16", "return tensor.dtype != torch.float32", FUSED),
    ("fused, through is stopped", "attention/fused/launch.py", 'THROUGH=options.gradient == "through"', "THROUGH=False", FUSED),
    ("fused, masks not broadcast", "attention/fused/launch.py", "0 if size == 1 else stride", "stride", FUSED),
    ("fused, masks of queries", "attention/fused/launch.py", "if mask.shape[3] == 1:  #", "if False:  #", FUSED),
    ("fused, a mask a head, in parts", "attention/fused/launch.py", "(per_head and mask.shape[1] > 1)", "False", FUSED_OPTIONS),
    ("fused, negative scales", "attention/fused/launch.py", "SCALED=options.scale <= 0 or (mask", "SCALED=(mask", FUSED_OPTIONS),
    ("fused, a seed for ever", "attention/fused/attend.py", "torch.randint(2**62, (1,), device=query.device)", "torch.zeros(1, dtype=torch.int64, device=query.device)", FUSED_OPTIONS),
    ("fused, empty not refused", "attention/arguments.py", "if tensor.numel() == 0:", "if False:", FUSED),
    ("fused, second derivatives dropped", "attention/fused/attend.py", "_may_call_directly() and not torch.is_grad_enabled()", "_may_call_directly()", FUSED),
    ("fused, modes passed over", "attention/fused/attend.py", "return not (torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active())", "return True", FUSED),
    ("fused, window of the others", "attention/arguments.py", "seen.triu(1 - window)", "seen.triu(-window)", FUSED_OPTIONS),
    ("varlen, too short", "varlen.py", "if longest is not None and longest < most:", "if False:", VARLEN),
    ("varlen, starts in no order", "varlen.py", "or (lengths < 0).any()", "", VARLEN),
    ("a tracker gets a step twice", "experiments/training/trackers.py", "if item[0] > repeated:", "if True:", TRACKERS),
    ("a tracker lacks what it missed", "experiments/training/trackers.py", "if step > last_step and not self.lost:", "if False:", TRACKERS),
    ("a tracker that hangs", "experiments/training/trackers.py", "time.monotonic() - self.busy_since > seconds", "False", TRACKERS),
    ("a tracker that is too slow", "experiments/training/trackers.py", "self.rows.qsize() > _WAITING_ROWS", "False", TRACKERS),
    ("a tracker's run stays open", "experiments/training/trackers.py", "            tracker.finish()", "            pass", TRACKERS),
    ("recall, fillers with an answer", "experiments/data/recall.py", "shuffled[: self.pairs], shuffled[self.pairs :]", "shuffled[: self.pairs], shuffled", RECALL),
    ("recall, one stream for all", "experiments/data/recall.py", "key=[self.stream, index]", "key=[0, index]", RECALL),
    ("recall, a loss at every token", "experiments/tasks/recall.py", "F.cross_entropy(_logits(model, tokens), targets, ignore_index=IGNORED)", "F.cross_entropy(_logits(model, tokens), targets.clamp(min=0))", RECALL),
    ("burgers, another operator", "experiments/data/burgers.py", "25 / ((2 * np.pi * modes) ** 2 + 25)", "25 / (modes**2 + 25)", BURGERS),
    ("burgers, the factor forgotten", "experiments/data/burgers.py", "whole * a + 2 * half * (b + c) + d", "a + 2 * (b + c) + d", BURGERS),
    ("burgers, a damaged file believed", "experiments/data/burgers.py", "except (OSError, ValueError, EOFError):", "except OSError:", BURGERS),
    ("burgers, an absolute error", "experiments/tasks/fields.py", ".norm(dim=1) / after.norm(dim=1)", ".norm(dim=1)", BURGERS),
    ("burgers, one evaluation set for all", "experiments/recipes/burgers.py", "        if not tuning:\n", "        if True:\n", BURGERS),
    ("regression, y of the present seen", "experiments/models/in_context.py", "torch.stack([x, values], dim=2)", "torch.stack([values, x], dim=2)", REGRESSION),
    ("regression, no penalty", "experiments/data/linear_functions.py", "penalty = noise**2 *", "penalty = noise *", REGRESSION),
    ("regression, the first point scored", "experiments/tasks/in_context_regression.py", '("score", expected[:, -1])', '("score", expected[:, 0])', REGRESSION),
    ("order, copies alike", "experiments/training/order.py", "(epoch, i, copy) for", "(epoch, i, 0) for", ORDER),
    ("order, a number outside", "experiments/training/order.py", "(outside := found >= length)", "(outside := found > length)", ORDER),
    ("order, epochs of a stream", "experiments/training/stream.py", "self.source.set_epoch(epoch)", "pass", ORDER),
    ("order, chance in a stream", "experiments/training/stream.py", "            reseed(self.seed, self.epoch, self.taken)", "            pass", ORDER),
    ("order, a state believed", "experiments/training/stream.py", '== place["digest"]:', '!= "":', ORDER),
    ("order, a stream from its beginning", "experiments/training/position.py", 'there.get("place")', "None", ORDER),
    ("the baseline reached by the luckiest run", "experiments/evidence/statistics.py", "statistics.fmean(curve[epoch] for curve in curves)", "max(curve[epoch] for curve in curves)", STATISTICS),
    ("power, an interval is all", "experiments/evidence/power.py", "return half_width * _noncentrality(critical, df) / critical", "return half_width", STATISTICS),
    ("blocks, unequal spreads believed", "experiments/evidence/blocks.py", "return self.unequal >= LEVEL", "return True", BLOCKS),
    ("blocks, degrees of freedom of no blocks", "experiments/evidence/blocks.py", "df, residuals = (n - 1) * (k - 1), _residuals(y)", "df, residuals = (n - 1) * k, _residuals(y)", BLOCKS),
    ("blocks, differences that share no baseline", "experiments/evidence/blocks.py", "reach = math.sqrt(2) * size * s[:, None]", "reach, z = size * s[:, None], 0 * z", BLOCKS),
    ("blocks, the odd one kept", "experiments/evidence/blocks.py", "        kept.remove(odd)", "        break", BLOCKS),
    ("outcomes, the loss of other weights", "experiments/evidence/outcomes.py", 'last.get("selected_step", last.get("step"))', 'last.get("step")', OUTCOMES),
    ("outcomes, never saturated", "experiments/evidence/outcomes.py", "abs(metric.limit - row.final.mean) < SATURATED", "abs(metric.limit - row.final.mean) < 0", OUTCOMES),
    ("tuning, the baseline's edge unsaid", "experiments/evidence/tuning.py", "any(first in names for names in at_edge.values())", "False", TUNING),
    ("tuning, an edge said too late", "experiments/commands.py", "for warning in tuning.warnings():", "for warning in ():", TUNING),
    ("order, a worker's share", "experiments/training/stream.py", "worker._worker_info = None", "pass", ORDER),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "words", "instead", "tests"), [m[1:] for m in MUTATIONS], ids=[m[0] for m in MUTATIONS]
)
def test_the_suite_notices(file, words, instead, tests, tmp_path):
    if tests in OF_KERNELS and not KERNELS_RUN:
        pytest.skip("Triton is not installed")
    package = tmp_path / "src" / SOURCE.name
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
    broken = package / file
    text = broken.read_text()
    assert text.count(words) == 1, "the list above does not know this file any more"
    broken.write_text(text.replace(words, instead))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests.split()]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode not in (0, 2, 3, 4, 5), done.stdout[-2000:]  # 1: a test failed; negative: it crashed


def test_the_list_is_up_to_date():
    for _, file, words, *_ in MUTATIONS:
        assert (SOURCE / file).read_text().count(words) == 1, words
