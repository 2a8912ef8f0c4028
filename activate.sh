# Enter the project's environment: source activate.sh
# (works in bash and zsh; run ./setup.sh once before)
if [ "${BASH_SOURCE[0]:-}" = "$0" ]; then
  echo "error: this must be sourced, not run: source activate.sh" >&2
  exit 2
fi
_bellman_root=$(cd "$(dirname "${BASH_SOURCE[0]:-${(%):-%x}}")" && pwd -P)
if [ -f "$_bellman_root/.venv/.setup-complete" ]; then
  . "$_bellman_root/.venv/bin/activate"
  unset _bellman_root
else
  echo "error: .venv is not set up: run $_bellman_root/setup.sh first" >&2
  unset _bellman_root
  return 2
fi
