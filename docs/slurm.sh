#!/usr/bin/env bash
# Run a suite on all nodes of a Slurm allocation: sbatch docs/slurm.sh SUITE --out /shared/results
# Any options of `reroute run` may follow. Adapt the numbers below to your cluster; python with
# reroute-bench[ray] must be on PATH on every node, and --out in a folder that all nodes share.
# A job that ran out of time resumes when it is submitted again.
#SBATCH --job-name=reroute
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
set -euo pipefail

nodes=$SLURM_JOB_NUM_NODES
gpus=${SLURM_GPUS_ON_NODE:-0}
cores=${SLURM_CPUS_PER_TASK:-1}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$first:${RAY_PORT:-6379}
# One worker per GPU; without GPUs one per core.
workers=$((nodes * (gpus > 0 ? gpus : cores)))

# Nobody else on these machines may send work to this cluster.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

# Ray starts on every node, runs the command on the first one, and stops when it has ended.
srun --nodes="$nodes" --ntasks="$nodes" \
  ray symmetric-run --address "$address" --min-nodes "$nodes" \
  --num-cpus="$cores" --num-gpus="$gpus" -- \
  reroute run "$@" --engine ray --address "$address" --workers "$workers"
