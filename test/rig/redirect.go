// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"fmt"
	"os/exec"
	"strings"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// IstioCNI is what istio-cni does to a pod, for [Redirect] (contract 2.7).
const IstioCNI = `
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

// Redirect puts rules of both families into a pod, as whoever redirects its
// connections to the proxy does: a line is iptables's arguments or, if it begins
// so, a command of ip(8). LOOP and PROBE stand for addresses of the family.
// It fails with [exec.ErrNotFound] if there is no iptables.
func Redirect(pod *netlab.Pod, rules string) error {
	for _, family := range []struct{ iptables, ip, loop, probe string }{
		{"iptables", "-4", "127.0.0.1/32", "169.254.7.127"},
		{"ip6tables", "-6", "::1/128", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"},
	} {
		program := family.iptables
		if path, err := exec.LookPath(program + "-legacy"); err == nil {
			program = path
		}
		text := strings.NewReplacer("LOOP", family.loop, "PROBE", family.probe).Replace(rules)
		for line := range strings.Lines(strings.TrimSpace(text)) {
			args := strings.Fields(line)
			if args[0] == "ip" {
				args = append([]string{"ip", family.ip}, args[1:]...)
			} else {
				args = append([]string{program}, args...)
			}
			cmd := exec.Command(args[0], args[1:]...)
			if cmd.Err != nil {
				return fmt.Errorf("redirect %s: %w", pod.Name(), cmd.Err)
			}
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			err := pod.Start(cmd)
			if err == nil {
				err = cmd.Wait()
			}
			if err != nil {
				return fmt.Errorf("redirect %s: %v: %w: %s", pod.Name(), args, err, out.String())
			}
		}
	}
	return nil
}
