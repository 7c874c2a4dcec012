#!/usr/bin/env bash
# Install one Debian package, or say in one sentence what to install: system-package.sh PACKAGE WHY
set -euo pipefail
package=$1 why=$2
if ! command -v apt-get >/dev/null; then
  echo "Missing: $why. Install '$package' with your system's package manager, then run make again." >&2
  exit 1
fi
if [ "$(id -u)" = 0 ]; then
  as_root=()
elif sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  echo "Missing: $why. This account may not install it; run: sudo apt-get install $package" >&2
  exit 1
fi
echo "Installing $package ($why) ..."
"${as_root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$package" >/dev/null
