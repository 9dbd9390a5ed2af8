#!/usr/bin/env bash
# Runs dreamjax on GPUs of several machines under Slurm, one process for each GPU. --dry-run in front prints the job.
#
#   ./launch/slurm.sh NODES GPUS_PER_NODE dreambooth ARGUMENTS...
#
# Folders are to lie where all nodes see them, and .venv beside this script's folder is to hold dreamjax with [cuda12] or
# [cuda13]. SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT say the rest. Two minutes before the time is over, or when
# the job is preempted, the run saves, and the job is queued again.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry=
if [[ ${1:-} == --dry-run ]]; then
  dry=yes
  shift
fi
[[ $# -ge 3 && $1 =~ ^[0-9]+$ && $2 =~ ^[0-9]+$ ]] || { sed -n '2,8s/^# \{0,1\}//p' launch/slurm.sh >&2; exit 2; }
[[ $here != *" "* ]] || { echo "Slurm cannot run in a folder with a space in its name: $here" >&2; exit 2; }
nodes=$1 gpus=$2
shift 2
job=$(
  cat <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=dreamjax
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --chdir=$here
# 75: it saved and was told to end, or lost another process, for which JAX itself ends with 134, and what was killed with
# 137. Whatever ends so within minutes ends so again.
srun --kill-on-bad-exit=0 $(printf '%q ' "$PWD/.venv/bin/dreamjax" "$@")--hosts auto
status=\$?
if [[ \$status =~ ^(75|134|137)\$ && \$SECONDS -gt 300 ]]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit \$status
EOF
)
if [[ -n $dry ]]; then
  echo "$job"
else
  sbatch <<<"$job"
fi
