# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
# docker build --build-arg EXTRA=tpu -t IMAGE .     (EXTRA=cuda for GPUs)
FROM python:3.12-slim
ARG EXTRA=tpu
WORKDIR /g2sd_jax
# What changes rarely first: a change of the code installs no package again.
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN pip install --no-cache-dir -e ".[$EXTRA]"
# As one process, so that a SIGTERM reaches the run itself.
ENTRYPOINT ["g2sd"]
