// SPDX-License-Identifier: Apache-2.0

// Fakeagent enrols network namespaces by hand.
//
//	fakeagent -socket /var/run/ztunnel/ztunnel.sock \
//	    -pod uid=1,name=a,ns=default,sa=default,netns=/run/netns/a
//
// It then reads lines:
//
//	add uid=2,name=b,ns=default,sa=default,netns=/run/netns/b
//	del 1
//	forget 2        leave it out of the next snapshot, without a word
//	disconnect      end the connection, as a restart of the agent does
//
// and prints what the proxy answers. It runs until SIGINT or SIGTERM.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/fakeagent"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "fakeagent:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	fs := flag.NewFlagSet("fakeagent", flag.ContinueOnError)
	socket := fs.String("socket", "/var/run/ztunnel/ztunnel.sock", "`path` to listen on")
	var pods []fakeagent.Pod
	fs.Func("pod", "`uid=,name=,ns=,sa=,netns=PATH` of a pod; may be repeated", func(s string) error {
		p, err := parsePod(s)
		pods = append(pods, p)
		return err
	})
	if err := fs.Parse(args); err != nil {
		return err
	}
	agent, err := fakeagent.Start(*socket, pods...)
	if err != nil {
		return err
	}
	defer agent.Close()
	fmt.Fprintln(out, "listening")
	go announce(ctx, agent, out)
	// The reader ends with its input, or with the process.
	go func() {
		for lines := bufio.NewScanner(in); lines.Scan(); {
			if line := strings.TrimSpace(lines.Text()); line != "" {
				fmt.Fprintln(out, command(agent, line))
			}
		}
	}()
	<-ctx.Done()
	return nil
}

func announce(ctx context.Context, agent *fakeagent.Agent, out io.Writer) {
	if agent.AwaitSnapshots(ctx, 1) == nil {
		for _, a := range agent.Answers() {
			fmt.Fprintln(out, strings.TrimSpace(a.Request+" "+a.UID)+":", verdict(a.Err))
		}
	}
}

// command does what a line says and returns what to print.
func command(agent *fakeagent.Agent, line string) string {
	verb, rest, _ := strings.Cut(line, " ")
	var err error
	switch verb {
	case "add":
		var p fakeagent.Pod
		if p, err = parsePod(rest); err == nil {
			err = agent.Add(p)
		}
	case "del":
		err = agent.Del(rest)
	case "forget":
		agent.Forget(rest)
	case "disconnect":
		agent.Disconnect()
	default:
		err = errors.New("want add, del, forget or disconnect")
	}
	return line + ": " + verdict(err)
}

func verdict(err error) string {
	if err != nil {
		return err.Error()
	}
	return "ok"
}

func parsePod(s string) (fakeagent.Pod, error) {
	var p fakeagent.Pod
	var path string
	fields := map[string]*string{"uid": &p.UID, "name": &p.Name, "ns": &p.Namespace, "sa": &p.ServiceAccount, "netns": &path}
	for part := range strings.SplitSeq(s, ",") {
		key, value, ok := strings.Cut(part, "=")
		field := fields[key]
		if !ok || field == nil {
			return p, fmt.Errorf("%q: want uid=, name=, ns=, sa= or netns=", part)
		}
		*field = value
	}
	if p.UID == "" || path == "" {
		return p, fmt.Errorf("%q: want at least uid= and netns=", s)
	}
	ns, err := netns.Open(path)
	p.NS = ns
	return p, err
}
