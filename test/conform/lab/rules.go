// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// rules are what istio-cni lays into a pod (contract 2.7), as arguments of
// iptables. LOOPBACK is the family's loopback address.
const rules = `
-t mangle -A PREROUTING -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-t mangle -A OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
-t nat -A PREROUTING ! -d LOOPBACK -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-t nat -A OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT --to-ports 15053
-t nat -A OUTPUT ! -d LOOPBACK -p tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
-t nat -A OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-t nat -A OUTPUT ! -d LOOPBACK -o lo -j ACCEPT
-t nat -A OUTPUT ! -d LOOPBACK -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
`

// istioRules captures a pod as istio-cni does.
func istioRules(h *netlab.Host) error {
	for _, family := range []struct{ tables, ip, loopback, all string }{
		{"iptables", "-4", "127.0.0.1/32", "0.0.0.0/0"}, {"ip6tables", "-6", "::1/128", "::/0"},
	} {
		program := family.tables + "-legacy"
		if _, err := exec.LookPath(program); err != nil {
			program = family.tables
		}
		for _, rule := range strings.Split(strings.TrimSpace(rules), "\n") {
			rule = strings.ReplaceAll(rule, "LOOPBACK", family.loopback)
			if err := run(h, append([]string{program}, strings.Fields(rule)...)...); err != nil {
				return err
			}
		}
		if err := run(h, "ip", family.ip, "route", "add", "local", family.all, "dev", "lo", "table", "100"); err != nil {
			return err
		}
		if err := run(h, "ip", family.ip, "rule", "add", "fwmark", "0x111/0xfff", "pref", "32764", "lookup", "100"); err != nil {
			return err
		}
	}
	return nil
}

func run(h *netlab.Host, args ...string) error {
	cmd := exec.Command(args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%q: %w: %s", args, err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
