// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Options are the servers of one process; an empty address is a server not
// wanted. Addresses are as net.Listen takes them.
type Options struct {
	Name                          string
	HTTP, Echo, Sink, Source, DNS string
	Records                       map[string][]netip.Addr
}

// Ready is the line that a serving process prints when all its sockets are
// bound.
const Ready = "ready"

// Args are the command line arguments that [Main] takes o from.
func (o Options) Args() []string {
	args := []string{"-name=" + o.Name}
	for name, value := range map[string]string{"http": o.HTTP, "echo": o.Echo, "sink": o.Sink, "source": o.Source, "dns": o.DNS} {
		if value != "" {
			args = append(args, "-"+name+"="+value)
		}
	}
	for name, addrs := range o.Records {
		for _, a := range addrs {
			args = append(args, fmt.Sprintf("-record=%s=%v", name, a))
		}
	}
	return args
}

// Main is the whole of a serving process: it runs what the arguments say until
// SIGTERM or SIGINT and returns the exit status.
func Main(args []string) int {
	o := Options{Records: map[string][]netip.Addr{}}
	fs := flag.NewFlagSet("labd", flag.ContinueOnError)
	fs.StringVar(&o.Name, "name", "labd", "what the HTTP server calls itself")
	fs.StringVar(&o.HTTP, "http", "", "`address` of an HTTP server that tells what it saw")
	fs.StringVar(&o.Echo, "echo", "", "`address` of a TCP server that gives back what it gets")
	fs.StringVar(&o.Sink, "sink", "", "`address` of a TCP server that answers with length and SHA-256")
	fs.StringVar(&o.Source, "source", "", "`address` of a TCP server that gives as many bytes as asked for")
	fs.StringVar(&o.DNS, "dns", "", "`address` of a DNS server, UDP and TCP")
	fs.Func("record", "`name=address` for the DNS server; may be repeated", func(v string) error {
		name, text, ok := strings.Cut(v, "=")
		addr, err := netip.ParseAddr(text)
		if !ok || err != nil {
			return errors.New("want name=address")
		}
		o.Records[name] = append(o.Records[name], addr)
		return nil
	})
	if err := fs.Parse(args); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := Run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "labd:", err)
		return 1
	}
	return 0
}

// Run binds what o wants, says [Ready] to out, and serves until ctx ends or a
// server fails.
func Run(ctx context.Context, o Options, out io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	bound, serves, err := bind(ctx, o)
	defer func() {
		for _, c := range bound {
			c.Close()
		}
	}()
	if err != nil {
		return err
	}
	fmt.Fprintln(out, Ready)
	var running sync.WaitGroup
	for _, s := range serves {
		running.Go(func() {
			if err := s(); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	running.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// bind makes the sockets of o and what serves on them. With an error come the
// sockets that were made, to be closed.
func bind(ctx context.Context, o Options) (bound []io.Closer, serves []func() error, err error) {
	listen := func(addr string, serve func(net.Listener) error) {
		if addr == "" || err != nil {
			return
		}
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err == nil {
			bound = append(bound, l)
			serves = append(serves, func() error { return serve(l) })
		}
	}
	listen(o.HTTP, func(l net.Listener) error { return HTTP(ctx, l, o.Name) })
	listen(o.Echo, func(l net.Listener) error { return Echo(ctx, l) })
	listen(o.Sink, func(l net.Listener) error { return Sink(ctx, l) })
	listen(o.Source, func(l net.Listener) error { return Source(ctx, l) })
	var pc net.PacketConn
	if o.DNS != "" && err == nil {
		if pc, err = net.ListenPacket("udp", o.DNS); err == nil {
			bound = append(bound, pc)
		}
	}
	listen(o.DNS, func(l net.Listener) error { return DNS(ctx, pc, l, o.Records) })
	return bound, serves, err
}
