// SPDX-License-Identifier: Apache-2.0

// Zagent is a node agent for nodes without istio-cni: it finds the pods that are
// in the mesh and has the proxy capture them. The same program is the CNI plugin
// by which a pod waits for that, installs it, and stands in for Kubernetes where
// there is none.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/cmd/zagent/cni"
)

const usage = `usage: zagent <command> [flags]

  run           serve the proxy of a Kubernetes node, and the CNI plugin
  static FILE   serve the proxy of a machine without Kubernetes
  install-cni   put the CNI plugin into the node's network configuration
  cni           be the CNI plugin, as a runtime calls it

zagent <command> -h lists the flags. docs/agent.md says what it does.
`

// A process is what surrounds a command.
type process struct {
	args        []string // after the program's name
	env         environment
	stdin       io.Reader
	out, errors io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	p := process{os.Args[1:], readEnvironment(), os.Stdin, os.Stdout, os.Stderr}
	if filepath.Base(os.Args[0]) == cni.Type {
		p.args = []string{"cni"}
	}
	status := p.run(ctx)
	stop()
	os.Exit(status)
}

// errUsage is a command line that was answered with the usage already.
var errUsage = errors.New("usage")

// run does what the arguments say and returns the exit status.
func (p process) run(ctx context.Context) int {
	if len(p.args) == 0 {
		fmt.Fprint(p.errors, usage)
		return 2
	}
	commands := map[string]func(context.Context, []string) error{
		"run": p.agent, "static": p.static, "install-cni": p.install,
	}
	name := p.args[0]
	if name == "cni" {
		return cni.Main(ctx, p.env.cni, p.stdin, p.out)
	}
	command, ok := commands[name]
	if !ok {
		fmt.Fprint(p.errors, usage)
		if name == "help" || name == "-h" || name == "--help" {
			return 0
		}
		return 2
	}
	switch err := command(ctx, p.args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return 2
	case err != nil:
		fmt.Fprintf(p.errors, "zagent %s: %v\n", name, err)
		return 1
	}
	return 0
}

// flags are those of a command, with what all have.
func (p process) flags(name, operands string) (*flag.FlagSet, func() *slog.Logger) {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(p.errors)
	f.Usage = func() {
		fmt.Fprintf(p.errors, "usage: zagent %s [flags]%s\n", name, operands)
		f.PrintDefaults()
	}
	format := f.String("log-format", "plain", "plain or json")
	debug := f.Bool("debug", false, "log more")
	return f, func() *slog.Logger {
		o := &slog.HandlerOptions{Level: slog.LevelInfo}
		if *debug {
			o.Level = slog.LevelDebug
		}
		if *format == "json" {
			return slog.New(slog.NewJSONHandler(p.errors, o))
		}
		return slog.New(slog.NewTextHandler(p.errors, o))
	}
}

// parse reads arguments, of which so many are no flags.
func parse(f *flag.FlagSet, args []string, operands int) error {
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if f.NArg() != operands {
		f.Usage()
		return errUsage
	}
	return nil
}

// list splits a flag's value at commas.
func list(value string) []string {
	var all []string
	for part := range strings.SplitSeq(value, ",") {
		if part = strings.TrimSpace(part); part != "" {
			all = append(all, part)
		}
	}
	return all
}
