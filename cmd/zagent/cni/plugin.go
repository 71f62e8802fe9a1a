// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// Env are the variables that a runtime sets (section 3 of the specification).
type Env struct {
	Command     string // CNI_COMMAND
	ContainerID string // CNI_CONTAINERID
	NetNS       string // CNI_NETNS
	Args        string // CNI_ARGS
}

// maxConfig bounds what is read from the runtime, in bytes.
const maxConfig = 1 << 20

// dialPause is between attempts to reach an agent that is not there, as while
// it is replaced.
const dialPause = 200 * time.Millisecond

// Main is the plugin: it does what env.Command says, writes a result or an
// [Error] to stdout and returns the exit status.
func Main(ctx context.Context, env Env, stdin io.Reader, stdout io.Writer) int {
	result, err := run(ctx, env, stdin)
	if err == nil {
		_, err = stdout.Write(result)
		if err == nil {
			return 0
		}
	}
	var failed *Error
	if !errors.As(err, &failed) {
		failed = &Error{Code: codeTryAgain, Msg: "ztunnel node agent", Details: err.Error()}
	}
	text, _ := json.Marshal(failed) // strings and a number
	stdout.Write(text)
	return 1
}

func run(ctx context.Context, env Env, stdin io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(stdin, maxConfig))
	if err != nil {
		return nil, &Error{Code: codeDecode, Msg: "standard input", Details: err.Error()}
	}
	if env.Command == "VERSION" {
		return versions(data), nil
	}
	cfg, err := ParseConfig(data)
	if err != nil {
		return nil, err
	}
	result, err := command(ctx, env, cfg)
	var failed *Error
	if errors.As(err, &failed) {
		failed.CNIVersion = cfg.CNIVersion
	} else if err != nil {
		err = &Error{CNIVersion: cfg.CNIVersion, Code: codeTryAgain, Msg: "ztunnel node agent", Details: err.Error()}
	}
	return result, err
}

// versions answers VERSION in the version that is asked for.
func versions(stdin []byte) []byte {
	var asked struct {
		CNIVersion string `json:"cniVersion"`
	}
	if json.Unmarshal(stdin, &asked) != nil || !slices.Contains(supported(), asked.CNIVersion) {
		asked.CNIVersion = supported()[len(supported())-1]
	}
	text, _ := json.Marshal(map[string]any{"cniVersion": asked.CNIVersion, "supportedVersions": supported()}) // strings
	return text
}

func command(ctx context.Context, env Env, cfg Config) ([]byte, error) {
	switch env.Command {
	case "ADD":
		return cfg.PrevResult, add(ctx, env, cfg)
	case "CHECK":
		return nil, ask(ctx, env, cfg, Check)
	case "DEL":
		// What the runtime takes down is gone with or without us, and the agent
		// also hears of it from the API. A DEL that fails is repeated for ever.
		_ = ask(ctx, env, cfg, Del)
		return nil, nil
	case "GC", "STATUS":
		// Nothing of ours outlives a sandbox. That the agent is away is no
		// reason to call the node's network down: ADD waits for it.
		return nil, nil
	}
	return nil, &Error{Code: codeEnv, Msg: "invalid environment variables", Details: fmt.Sprintf("CNI_COMMAND is %q", env.Command)}
}

func add(ctx context.Context, env Env, cfg Config) error {
	if len(cfg.PrevResult) == 0 {
		return &Error{Code: codeConfig, Msg: "there is no prevResult", Details: Type + " only works behind the plugin that makes the pod's network"}
	}
	return ask(ctx, env, cfg, Add)
}

// ask has the agent do what the runtime wants of a pod, if it is one.
func ask(ctx context.Context, env Env, cfg Config, op Op) error {
	p, err := parseArgs(env.Args)
	if err != nil {
		return &Error{Code: codeEnv, Msg: "invalid environment variables", Details: err.Error()}
	}
	if p.name == "" || slices.Contains(cfg.ExcludeNamespaces, p.namespace) {
		return nil
	}
	req := Request{Op: op, Sandbox: env.ContainerID, Name: p.name, Namespace: p.namespace, UID: p.uid}
	if len(cfg.PrevResult) > 0 {
		if req.Addrs, err = addresses(cfg.PrevResult); err != nil {
			return &Error{Code: codeDecode, Msg: "result of the plugins before", Details: err.Error()}
		}
	}
	var ns *netns.NS
	if op != Del {
		if ns, err = netns.Open(env.NetNS); err != nil {
			return &Error{Code: codeEnv, Msg: "invalid environment variables", Details: "CNI_NETNS: " + err.Error()}
		}
		defer ns.Close()
	}
	wait := cfg.timeout()
	if op == Del {
		wait = delWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return persist(ctx, cfg.Socket, req, ns)
}

// delWait bounds what DEL spends on an agent that may be away.
const delWait = 2 * time.Second

// persist asks until an agent has answered, or the time is up.
func persist(ctx context.Context, socket string, req Request, ns *netns.NS) error {
	for {
		if end, ok := ctx.Deadline(); ok {
			req.Wait = time.Until(end) * 9 / 10 // the agent knows better what was missing, so it says so first
		}
		err := Ask(ctx, socket, req, ns)
		var refused *Refused
		if err == nil || errors.As(err, &refused) {
			return err
		}
		select {
		case <-time.After(dialPause):
		case <-ctx.Done():
			return fmt.Errorf("pod %s/%s is not started, since no node agent is there to have it captured: %w", req.Namespace, req.Name, err)
		}
	}
}
