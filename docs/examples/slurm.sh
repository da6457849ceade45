#!/bin/bash
# A run on two nodes of a Slurm cluster. Untested: adapt the partition, the paths and the environment.
#
#     sbatch slurm.sh
#
# When the time limit ends a run, the same command goes on with it.
#SBATCH --job-name=estep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive                     # Ray refuses a node where it runs already
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --time=08:00:00
#SBATCH --output=estep-%j.txt
set -euo pipefail

shared=/shared/$USER                    # a file system that all nodes see under this path
source "$shared/estep/.venv/bin/activate"
export ESTEP_CACHE=$shared/cache HF_HOME=$shared/huggingface RAY_USAGE_STATS_ENABLED=0

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Every node starts Ray. The first one also runs the command behind `--`, where `cluster=auto` finds the cluster, and all
# stop when it ends.
srun --kill-on-bad-exit=1 \
    ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" --num-gpus 8 -- \
    estep train paper/helpsteer2 model=llama-3.1-8b cluster=auto "run_dir=$shared/runs/helpsteer2"
