// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/admin"
	"github.com/ztunnel-go/ztunnel/internal/top"
)

// maxPage is the largest page that top reads, in bytes.
const maxPage = 256 << 20

// topCommand is the command top: what a running proxy does, on the terminal or,
// where stdout is none, once in text.
func topCommand(args []string, env Env, stdout io.Writer) error {
	flags := flag.NewFlagSet("top", flag.ContinueOnError)
	flags.SetOutput(stdout)
	once := flags.Bool("once", false, "print one table of everything, and end")
	interval := flags.Duration("interval", time.Second, "the `time` between two looks")
	at := flags.String("admin", "", "`where` the proxy's admin pages are: host:port, or a socket's path")
	stats := flags.String("stats", "", "`where` its metrics are: host:port")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("top takes no argument, not %q", flags.Arg(0))
	}
	place := adminPlace(env, *at)
	if *stats == "" {
		*stats = statsPlace(env)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer cancel()
	cfg := top.Config{Admin: page(place), Stats: page(*stats), Place: place, Interval: *interval}
	if *once || !isTerminal(stdout) {
		return top.Once(ctx, cfg, stdout)
	}
	return top.Run(ctx, cfg)
}

func page(place string) func(context.Context, string) ([]byte, error) {
	client := admin.NewClient(place)
	return func(ctx context.Context, page string) ([]byte, error) { return client.Get(ctx, page, maxPage) }
}

// statsPlace is where a proxy with this environment would have its metrics.
func statsPlace(env Env) string {
	r := &reader{Env: env}
	port := uint16(15020)
	if mesh := r.proxyConfig(); r.err == nil {
		port = or(mesh.statsPort, port)
	}
	return "127.0.0.1:" + strconv.Itoa(int(port))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
