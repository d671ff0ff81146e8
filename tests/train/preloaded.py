"""What workers are forked with, so that none of them imports it again."""
# ruff: noqa: F401

import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor
import transformers.models.gpt2.modeling_gpt2
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import eval.environments
import latent.methods.coconut
import latent.methods.cot
import latent.methods.fixed
import latent.methods.no_cot
import latent.methods.pause
import latent.methods.recurrent
import latent.methods.sim
import tests.train.by_hand
import train.memory
import train.rlvr
import train.run
