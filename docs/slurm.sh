#!/usr/bin/env bash
# Run a suite on all nodes of a Slurm allocation: sbatch docs/slurm.sh SUITE --out /shared/results
# Whatever `reroute run` takes may follow. Set the numbers below to those of your cluster; python
# with reroute-bench[ray] has to be on PATH on every node, and --out in a folder that all see.
# A job that ran out of time goes on where it stood once it is submitted again.
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
# A worker for each GPU; without GPUs one for each core.
workers=$((nodes * (gpus > 0 ? gpus : cores)))

# Nobody else on these machines may send work to this cluster.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

# Ray starts on every node, runs the command on the first one, and stops when it has ended.
srun --nodes="$nodes" --ntasks="$nodes" \
  ray symmetric-run --address "$address" --min-nodes "$nodes" \
  --num-cpus="$cores" --num-gpus="$gpus" -- \
  reroute run "$@" --engine ray --address "$address" --workers "$workers"
