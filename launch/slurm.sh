#!/usr/bin/env bash
# Runs dreamjax on GPUs of several machines under Slurm, one process for each GPU. --dry-run in front prints the job.
#
#   ./launch/slurm.sh NODES GPUS_PER_NODE dreambooth ARGUMENTS...
#
# All nodes must see the folders, and the repository's .venv must hold dreamjax with [cuda12] or [cuda13].
# SBATCH_PARTITION, SBATCH_ACCOUNT and SBATCH_TIMELIMIT set the rest. Two minutes before the time is over, or when the
# job is preempted, the run saves, and the job is queued again.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/steps.sh
source launch/steps.sh

[[ $# -ge 3 && $1 =~ ^[0-9]+$ && $2 =~ ^[0-9]+$ ]] || usage
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
export JAX_COMPILATION_CACHE_DIR=\${JAX_COMPILATION_CACHE_DIR:-$here/.xla}

# srun ends with the highest status of its tasks. A task that was interrupted ends with 75: it saved on SIGTERM, or lost
# another process (75, or 134 from JAX itself), or was killed (137, 143). One that would fail again ends with 200 more
# than its status, which is then higher than that of the others, which lost a process through it.
task='
  trap : TERM # Slurm signals this shell as well, which must wait
  status=0
  "\$@" || status=\$?
  case \$status in
    0) exit 0 ;;
    75 | 134 | 137 | 143) exit 75 ;;
  esac
  exit \$((status < 55 ? 200 + status : 255))
'
status=0
srun --kill-on-bad-exit=0 bash -c "\$task" task $(printf '%q ' "$PWD/.venv/bin/dreamjax" "$@")--hosts auto || status=\$?
if [[ \$status -ge 200 ]]; then
  exit \$((status - 200))
fi
# A job that ended within ten minutes would do so again: JAX waits five for a process that may be gone for good.
if [[ \$status -ne 0 && \$SECONDS -gt 600 ]]; then
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
