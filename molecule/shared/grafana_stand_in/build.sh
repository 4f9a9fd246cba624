#!/bin/sh
# Build the package that stands in for Grafana: build.sh OUT.deb, which also writes OUT.deb.sha256.
# Needs dpkg-deb only, and the same source gives the same bytes.
set -eu

[ $# -eq 1 ] || {
  echo "usage: $0 OUT.deb" >&2
  exit 2
}
source=$(cd "$(dirname "$0")" && pwd)
out=$1
version='12.0.0~stand-in'
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-1704067200}"

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
umask 022
chmod 755 "$root"

home=$root/usr/share/grafana
mkdir -p "$root/DEBIAN" "$home/bin" "$home/conf" "$home/grafana_stand_in" \
  "$root/usr/sbin" "$root/etc/default" "$root/usr/lib/systemd/system" "$(dirname "$out")"
cp "$source"/*.py "$home/grafana_stand_in/"
sed "s/@VERSION@/$version/" "$source/debian/control" >"$root/DEBIAN/control"
echo /etc/default/grafana-server >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
  install -m 755 "$source/debian/$script" "$root/DEBIAN/$script"
done
install -m 644 "$source/debian/default" "$root/etc/default/grafana-server"
install -m 644 "$source/debian/grafana-server.service" "$root/usr/lib/systemd/system/"
echo '# Stand-in for Grafana: every setting has its default.' >"$home/conf/sample.ini"

cat >"$home/bin/grafana" <<'EOF'
#!/bin/sh
# Stand-in for Grafana.
PYTHONPATH=/usr/share/grafana PYTHONDONTWRITEBYTECODE=1 exec /usr/bin/python3 -m grafana_stand_in "$@"
EOF
for part in server cli; do
  printf '#!/bin/sh\nexec /usr/share/grafana/bin/grafana %s "$@"\n' "$part" >"$root/usr/sbin/grafana-$part"
done
printf '#!/bin/sh\nexec /usr/share/grafana/bin/grafana "$@"\n' >"$root/usr/sbin/grafana"
chmod 755 "$home/bin/grafana" "$root"/usr/sbin/*
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

dpkg-deb --root-owner-group -Zxz --build "$root" "$out" >/dev/null
(cd "$(dirname "$out")" && sha256sum "$(basename "$out")" >"$(basename "$out").sha256")
echo "Built the stand-in for Grafana: $out ($version)"
