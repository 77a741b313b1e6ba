"""What a training run imports, so that the process from which runs are forked has it before the first of them. It must start no thread."""

# ruff: noqa: F401

import torch._dynamo
import torch.distributed
import torch.utils.tensorboard

import captioning.analysis.samples
import captioning.build.compose
import captioning.build.evaluation
import captioning.build.features
import captioning.build.jobs
import captioning.build.start
import captioning.models.decoders.attention
import captioning.models.decoders.recurrent
import captioning.models.encoders
import captioning.training.trainer
