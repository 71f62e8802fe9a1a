// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/privileged"
)

// Redirection by others: what istio-cni, or whoever prepares a pod for a
// dedicated proxy, does with iptables. In the rules below LOOP and PROBE stand
// for addresses of the family.

// redirectRules are those of contract 2.7. "ip" lines are for ip(8).
const redirectRules = `
-t mangle -A PREROUTING -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-t mangle -A OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
-t nat -A PREROUTING -s PROBE -p tcp -j ACCEPT
-t nat -A PREROUTING ! -d LOOP -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-t nat -A OUTPUT -d PROBE -p tcp -j ACCEPT
-t nat -A OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff --dport 53 -j REDIRECT --to-ports 15053
-t nat -A OUTPUT ! -d LOOP -p tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
-t nat -A OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-t nat -A OUTPUT ! -d LOOP -o lo -j ACCEPT
-t nat -A OUTPUT ! -d LOOP -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
ip route add local default dev lo table 100
ip rule add fwmark 0x111/0xfff pref 32764 lookup 100
`

// groupRules know the proxy by its group, as those of sidecars do, for one that
// may not mark. Nothing leads replies to a client's address back to it.
const groupRules = `
-t nat -A PREROUTING ! -d LOOP -p tcp ! --dport 15008 -j REDIRECT --to-ports 15006
-t nat -A OUTPUT ! -o lo -p udp --dport 53 -m owner ! --gid-owner 1337 -j REDIRECT --to-ports 15053
-t nat -A OUTPUT ! -o lo -p tcp -m owner ! --gid-owner 1337 -j REDIRECT --to-ports 15001
`

// redirect puts rules of both families into a pod.
func redirect(t *testing.T, pod *netlab.Pod, rules string) {
	t.Helper()
	for _, family := range []struct{ iptables, ip, loop, probe string }{
		{"iptables", "-4", "127.0.0.1/32", "169.254.7.127"},
		{"ip6tables", "-6", "::1/128", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"},
	} {
		program := family.iptables
		if path, err := exec.LookPath(program + "-legacy"); err == nil {
			program = path
		}
		if _, err := exec.LookPath(program); err != nil {
			privileged.Lacking(t, fmt.Errorf("iptables stands in for istio-cni: %w", err))
		}
		text := strings.NewReplacer("LOOP", family.loop, "PROBE", family.probe).Replace(rules)
		for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
			args := strings.Fields(line)
			if args[0] == "ip" {
				args = append([]string{"ip", family.ip}, args[1:]...)
			} else {
				args = append([]string{program}, args...)
			}
			cmd := exec.Command(args[0], args[1:]...)
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			must(t, pod.Start(cmd))
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%v: %v: %s", args, err, out.String())
			}
		}
	}
}
