// SPDX-License-Identifier: Apache-2.0

// Soak runs two proxies under everything at once, for a while: pods come and
// go, policies flip, the agent, the control plane and the proxies are started
// anew, and connections of all kinds go on meanwhile. `make soak` builds and
// runs it; it needs root.
//
// It keeps a book of each connection: what either side has sent and received,
// with SHA-256, how it ended and when, and beside it a chronicle of what was
// done to the mesh. At the end no byte may be missing on a connection that
// nothing was done to, none may have got past a policy, and the proxies must
// have what they had after warming up: descriptors, goroutines, memory, map
// entries, rules and routes. It prints a table, and what was violated with
// the book's page and the proxies' lines on it; then it ends with 1.
//
// What is tried, and in which order, follows from -seed; when it meets what is
// the machine's affair, so that a failure comes again only roughly.
//
// It looks at the proxies from outside only.
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
	"github.com/ztunnel-go/ztunnel/test/privileged"
)

// options are the flags.
type options struct {
	ztunnel string // the binary
	engine  string // TLS_ENGINE of both proxies
	lasts   time.Duration
	warm    time.Duration
	seed    uint64
	lanes   int    // connections at a time
	only    string // what is done to the mesh, by name; empty: all
	logs    string // directory for what the proxies print; empty: none
}

// brief says whether there is no time for what takes long.
func (o options) brief() bool { return o.lasts < time.Minute }

func main() {
	netlab.Main()
	o, err := parseFlags(os.Args[1:])
	if err != nil {
		os.Exit(2)
	}
	if err := privileged.Missing(); err != nil {
		fmt.Fprintln(os.Stderr, "soak: needs root:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer stop()
	held, err := run(ctx, o, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
	}
	if err != nil || !held {
		stop()
		os.Exit(1)
	}
}

func parseFlags(args []string) (o options, err error) {
	fs := flag.NewFlagSet("soak", flag.ContinueOnError)
	fs.StringVar(&o.ztunnel, "ztunnel", "bin/ztunnel", "`path` of the binary")
	fs.StringVar(&o.engine, "engine", "reactor", "TLS_ENGINE of the proxies: reactor or std")
	fs.DurationVar(&o.lasts, "duration", 10*time.Minute, "how long things are done to the mesh")
	fs.DurationVar(&o.warm, "warm", 20*time.Second, "how long there is traffic before the first look at what the proxies hold")
	fs.Uint64Var(&o.seed, "seed", 0, "of all that is left to chance; 0: the time")
	fs.IntVar(&o.lanes, "lanes", 40, "connections at a time")
	fs.StringVar(&o.only, "only", "", "what is done to the mesh, by `names` apart by commas; empty: all; none: nothing")
	fs.StringVar(&o.logs, "logs", "", "`directory` for what the proxies print, one file each")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())
	}
	if o.engine != "reactor" && o.engine != "std" {
		err = fmt.Errorf("-engine %q is neither reactor nor std", o.engine)
	}
	if err == nil && o.lanes < 1 {
		err = errors.New("-lanes must be 1 at least")
	}
	if err == nil {
		if o.ztunnel, err = filepath.Abs(o.ztunnel); err == nil {
			_, err = os.Stat(o.ztunnel)
		}
	}
	if err != nil {
		fmt.Fprintln(fs.Output(), "soak:", err)
	}
	return o, err
}
