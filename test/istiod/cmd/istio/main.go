// SPDX-License-Identifier: Apache-2.0

// Command istio is what the tests need of Istio, in one program, since most of
// its weight is common:
//
//	istio istiod -ca DIR -objects DIR -control ADDRESS   see package controlplane
//	istio zds -socket PATH [-rules]                      see package zds
//	istio ztunnel-config OUT ...                         as istioctl has it, with --file
//
// OUT is a file for what istioctl prints: Istio's packages log to standard
// output before main can say otherwise.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"istio.io/istio/istioctl/pkg/cli"
	"istio.io/istio/istioctl/pkg/ztunnelconfig"

	"github.com/ztunnel-go/ztunnel/test/istiod/controlplane"
	"github.com/ztunnel-go/ztunnel/test/istiod/zds"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "istio:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("want istiod, zds or ztunnel-config")
	}
	switch args[0] {
	case "istiod":
		return istiod(args[1:])
	case "zds":
		var cfg zds.Config
		flags := flag.NewFlagSet("zds", flag.ExitOnError)
		flags.StringVar(&cfg.Socket, "socket", "", "`path` to listen on")
		flags.BoolVar(&cfg.Rules, "rules", false, "put the agent's rules into pods")
		_ = flags.Parse(args[1:])
		return zds.Run(cfg, os.Stdin, os.Stdout)
	case "ztunnel-config":
		return ztunnelConfig(args[1:])
	}
	return fmt.Errorf("unknown verb %q", args[0])
}

func ztunnelConfig(args []string) error {
	if len(args) == 0 {
		return errors.New("want a file to write to")
	}
	out, err := os.Create(args[0])
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := ztunnelconfig.ZtunnelConfig(cli.NewFakeContext(nil))
	cmd.SetArgs(args[1:])
	cmd.SetOut(out)
	return cmd.Execute()
}

func istiod(args []string) error {
	var cfg controlplane.Config
	flags := flag.NewFlagSet("istiod", flag.ExitOnError)
	ca := flags.String("ca", "", "`directory` of the authority")
	flags.StringVar(&cfg.Objects, "objects", "", "`directory` of YAML files to begin with")
	flags.StringVar(&cfg.Control, "control", "127.0.0.1:15080", "`address` to take objects on")
	_ = flags.Parse(args)
	again := false
	for _, setting := range controlplane.Environ(*ca) {
		name, value, _ := strings.Cut(setting, "=")
		again = again || os.Getenv(name) != value
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	if again { // Istio's packages have read the environment by now
		return unix.Exec("/proc/self/exe", os.Args, os.Environ())
	}
	return controlplane.Run(cfg)
}
