// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/balance"
	"github.com/ztunnel-go/ztunnel/dataplane/explain"
	"github.com/ztunnel-go/ztunnel/internal/admin"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/xds"
)

const (
	// askTimeout bounds a question to a running proxy.
	askTimeout = 30 * time.Second
	// maxAnswer is the largest explanation that is read, in bytes.
	maxAnswer = 16 << 20
)

// explainNamed is /debug/explain. A choice among endpoints is made anew each
// time.
func (n *node) explainNamed(from, to string) (any, error) {
	return explain.Explain(explain.Question{
		View: n.store.View().Pin(), Network: n.cfg.Network, From: from, To: to, OnDemand: n.cfg.Control.OnDemand && n.feed != nil,
		Illegal: n.cfg.IllegalPorts, Choose: n.balance.Choose,
	})
}

// explainCommand is the command explain: it asks a running proxy, or a file.
func explainCommand(args []string, env Env, stdout io.Writer) error {
	flags := flag.NewFlagSet("explain", flag.ContinueOnError)
	flags.SetOutput(stdout)
	asJSON := flags.Bool("json", false, "print JSON")
	file := flags.String("f", "", "ask this `file` instead of a proxy: a config dump, or local resources; - is stdin")
	at := flags.String("admin", "", "`where` the proxy's admin pages are: host:port, or a socket's path")
	flags.Usage = func() {
		fmt.Fprintln(stdout, "explain [flags] FROM TO[:PORT]: each an address, namespace/pod, namespace/service or hostname")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 2 {
		return fmt.Errorf("explain wants two ends, FROM and TO, and was given %d (flags stand before them)", flags.NArg())
	}
	var answer explain.Answer
	var err error
	if *file != "" {
		answer, err = explainFile(*file, flags.Arg(0), flags.Arg(1))
	} else {
		answer, err = explainRunning(adminPlace(env, *at), flags.Arg(0), flags.Arg(1))
	}
	if err != nil {
		return err
	}
	if *asJSON {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "  ")
		return e.Encode(answer)
	}
	_, err = io.WriteString(stdout, answer.Text())
	return err
}

// adminPlace is where a proxy with this environment would show its pages.
func adminPlace(env Env, asked string) string {
	if asked != "" {
		return asked
	}
	r := &reader{Env: env}
	if path := r.text("ADMIN_SOCKET", ""); path != "" {
		return path
	}
	port := uint16(15000)
	if mesh := r.proxyConfig(); r.err == nil {
		port = or(mesh.adminPort, port)
	}
	return "127.0.0.1:" + strconv.Itoa(int(port))
}

func explainRunning(at, from, to string) (explain.Answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	var answer explain.Answer
	query := url.Values{"src": {from}, "dst": {to}}
	text, err := admin.NewClient(at).Get(ctx, "/debug/explain?"+query.Encode(), maxAnswer)
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return answer, fmt.Errorf("read the answer of %s: %w", at, err)
	}
	return answer, nil
}

func explainFile(path, from, to string) (explain.Answer, error) {
	view, network, err := viewOfFile(path)
	if err != nil {
		return explain.Answer{}, err
	}
	table := balance.New(balance.Config{Policy: balance.LeastLoaded})
	return explain.Explain(explain.Question{
		View: view, Network: network, From: from, To: to,
		Illegal: []uint16{PortOutbound, PortPlaintext, PortHBONE}, Choose: table.Choose,
	})
}

// viewOfFile reads a config dump, or what LOCAL_XDS_PATH names.
func viewOfFile(path string) (mesh.View, string, error) {
	var text []byte
	var err error
	if path == "-" {
		text, err = io.ReadAll(os.Stdin)
	} else {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return mesh.View{}, "", err
	}
	store := mesh.NewStore()
	picture, err := admin.ReadDump(text)
	if err == nil {
		picture.Apply(store)
		return store.View(), picture.Network, nil
	}
	if json.Valid(text) && !errors.Is(err, admin.ErrNoDump) {
		return mesh.View{}, "", fmt.Errorf("%s: %w", path, err)
	}
	local, err := xds.OpenLocal(context.Background(), xds.LocalConfig{Inline: string(text)}, store, slog.New(slog.DiscardHandler))
	if err != nil {
		return mesh.View{}, "", fmt.Errorf("%s is neither a config dump nor local resources: %w", path, err)
	}
	return store.View(), "", local.Close()
}
