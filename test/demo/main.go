// SPDX-License-Identifier: Apache-2.0

// Demo puts two nodes with pods on one machine, runs the real ztunnel on both,
// and shows what it does: each line that it prints was checked. It ends with 0
// only if every line held. `make demo` builds and runs it; it needs root.
//
// With -shell it leaves everything up, with a shell inside a pod.
//
// It looks at the proxy from outside only: what clients and servers see, what
// passes the links, what the proxy's own pages say. It imports none of its
// packages.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// options are the flags.
type options struct {
	ztunnel string // the binary
	bytes   int64  // that a bulk transfer carries
	shell   bool
	pcap    string // directory for recordings; empty: none
}

// patience bounds the whole demo, for a machine on which everything hangs. A
// shell may last longer.
const patience = 3 * time.Minute

func main() {
	netlab.Main() // does not return in a child that serves
	if os.Args[0] == shellName {
		fmt.Fprintln(os.Stderr, "demo:", inPod(os.Args[1:]))
		os.Exit(1)
	}
	o, err := parseFlags(os.Args[1:])
	if err != nil {
		os.Exit(2)
	}
	held, err := run(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	if err != nil || !held {
		os.Exit(1)
	}
}

func parseFlags(args []string) (o options, err error) {
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.StringVar(&o.ztunnel, "ztunnel", "bin/ztunnel", "`path` of the binary to show")
	fs.Int64Var(&o.bytes, "bytes", 1<<30, "`size` of the large transfer each way")
	fs.BoolVar(&o.shell, "shell", false, "leave everything up, with a shell in a pod")
	fs.StringVar(&o.pcap, "pcap", "", "`directory` to write the recordings to, one file for each link")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if o.ztunnel, err = filepath.Abs(o.ztunnel); err == nil {
		_, err = os.Stat(o.ztunnel)
	}
	if err != nil {
		fmt.Fprintln(fs.Output(), "demo:", err)
	}
	return o, err
}

// run returns whether every line held. Whatever happens, nothing that it made
// is left behind.
func run(o options) (bool, error) {
	if os.Geteuid() != 0 {
		return false, errors.New("namespaces and their links are made by root: try sudo")
	}
	interrupted, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer stop()
	ctx, cancel := context.WithTimeout(interrupted, patience)
	defer cancel()

	d := &demo{options: o, table: newTable(interrupted, os.Stdout), ledger: newLedger()}
	err := d.build(ctx)
	if err == nil {
		d.show(ctx)
	}
	if interrupted.Err() != nil {
		err = errors.New("interrupted")
	}
	if err == nil && o.shell {
		d.table.over = context.Background() // from here on SIGINT is for what runs in the shell
		err = d.shell()
	}
	err = d.close(err)
	return d.table.summary(), err
}

// show is everything that is done, in order. Subjects do not depend on each
// other, but for what their comments say.
func (d *demo) show(ctx context.Context) {
	for _, subject := range []struct {
		title string
		lines func(context.Context)
	}{
		{"Two nodes", d.showNodes},
		{"Names", d.showNames},
		{"Through the mesh", d.showMesh},
		{"IPv6", d.showIPv6},
		{"In and out of the mesh", d.showBorder},
		{"Policy", d.showPolicy},
		{"On the wire", d.showWire},
		{"In bulk", d.showBulk},
		{"Counted", d.showCounts},
	} {
		if ctx.Err() != nil {
			return
		}
		d.table.title(subject.title)
		subject.lines(ctx)
	}
}
