// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// A Script is a scenario that has been read and understood.
type Script struct {
	// Name is the file's, without directory and suffix.
	Name string
	// Title says the behaviour in a sentence.
	Title string
	// Contract is the section that demands it, such as 13.1.
	Contract string
	// Beyond is set where ztunnel does something else, known to be worse: the
	// row of docs/compat.md.
	Beyond string

	env    map[string]string
	nodes  []string // that run a proxy
	agent  string   // who tells the pods: "usual", or "script" for the steps themselves
	fresh  bool     // wants proxies that nobody has used, and leaves them unusable
	local  bool     // the state comes from a file, not from the control plane
	state  *State
	steps  []step
	source string // path, for errors
}

// A step is one line of a scenario, compiled.
type step struct {
	line   int
	text   string
	action action
}

// An action plays a step. Its error says what was seen instead.
type action func(ctx context.Context, p *player) error

// headingKey is what stands before the colon of a heading.
var headingKey = regexp.MustCompile(`^[a-z]+$`)

// maxScript bounds a file: it is meant to be read by people.
const maxScript = 64 << 10

// Parse reads a scenario. Errors name the file and the line.
func Parse(name string, text []byte) (*Script, error) {
	s := &Script{
		Name: strings.TrimSuffix(path.Base(name), path.Ext(name)), source: name,
		env: map[string]string{}, agent: "usual", state: &State{},
	}
	if len(text) > maxScript {
		return nil, fmt.Errorf("%s: longer than %d bytes", name, maxScript)
	}
	lines := strings.Split(string(text), "\n")
	for i := 0; i < len(lines); {
		line, at := lines[i], i+1
		i++
		block := ""
		for i < len(lines) && isIndented(lines, i) {
			block += lines[i] + "\n"
			i++
		}
		if err := s.line(line, block, at); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, at, err)
		}
	}
	if err := s.complete(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// isIndented says whether a line belongs to the one above: it is indented, or
// empty with an indented line to come.
func isIndented(lines []string, i int) bool {
	if strings.TrimSpace(lines[i]) != "" {
		return lines[i][0] == ' ' || lines[i][0] == '\t'
	}
	for _, next := range lines[i:] {
		if strings.TrimSpace(next) != "" {
			return next[0] == ' ' || next[0] == '\t'
		}
	}
	return false
}

func (s *Script) line(line, block string, at int) error {
	if isIndented([]string{line}, 0) {
		return errors.New("an indented line that belongs to nothing")
	}
	key, value, isHeading := strings.Cut(line, ":")
	if isHeading && headingKey.MatchString(key) && (key != "state" || !s.isState()) {
		return s.header(key, strings.TrimSpace(value), block)
	}
	words, err := splitWords(line)
	if err != nil {
		return err
	}
	if len(words) == 0 {
		if strings.TrimSpace(block) != "" {
			return errors.New("indented lines below a comment")
		}
		return nil
	}
	act, err := compile(&reader{words: words, block: block})
	if err != nil {
		return err
	}
	s.steps = append(s.steps, step{at, strings.TrimSpace(line), act})
	return nil
}

// isState says whether another state is a step: the first is a heading.
func (s *Script) isState() bool { return len(s.steps) > 0 || s.state.text != "" }

// header is a line such as "contract: 13.1", before the first step.
func (s *Script) header(key, value, block string) (err error) {
	if len(s.steps) > 0 {
		return fmt.Errorf("%s: comes after the first step", key)
	}
	if (key == "state") != (block != "") {
		return fmt.Errorf("%s: and indented lines do not go together", key)
	}
	if (key == "state") != (value == "") {
		return fmt.Errorf("%s: wants a value, or only state does not", key)
	}
	switch key {
	case "title":
		s.Title = value
	case "contract":
		s.Contract = value
	case "beyond":
		s.Beyond = value
	case "nodes":
		s.nodes = strings.Fields(value)
	case "env":
		name, v, ok := strings.Cut(value, "=")
		if !ok || name == "" {
			return fmt.Errorf("env: %q is not NAME=VALUE", value)
		}
		s.env[name] = v
	case "agent":
		s.agent = value
	case "fresh":
		s.fresh = value == "yes"
	case "local":
		s.local = value == "yes"
	case "state":
		s.state, err = parseState(block)
	default:
		return fmt.Errorf("%s: is no heading: want title, contract, beyond, nodes, env, agent, fresh, local or state", key)
	}
	return err
}

func (s *Script) complete() error {
	if len(s.nodes) == 0 {
		s.nodes = nodes()
	}
	for _, n := range s.nodes {
		if !slices.Contains(nodes(), n) && n != "none" {
			return fmt.Errorf("nodes: %q is none", n)
		}
	}
	if s.agent != "usual" && s.agent != "script" {
		return fmt.Errorf("agent: %q is neither usual nor script", s.agent)
	}
	if s.agent == "script" {
		s.nodes, s.fresh = []string{"node1"}, true
	}
	if s.nodes[0] == "none" {
		s.nodes = nil
	}
	switch {
	case s.Title == "":
		return errors.New("no title: a sentence that says the behaviour")
	case !regexp.MustCompile(`^[1-9][0-9]?(\.[0-9]+)*$`).MatchString(s.Contract):
		return fmt.Errorf("contract: %q is no section", s.Contract)
	case len(s.steps) == 0:
		return errors.New("no step: it would assert nothing")
	}
	return nil
}

// ParseAll reads every scenario of a directory, in the order of their names.
// It returns all errors, not only the first.
func ParseAll(dir fs.FS) ([]*Script, error) {
	names, err := fs.Glob(dir, "*.txt")
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, errors.New("no scenario (*.txt) there")
	}
	var scripts []*Script
	var errs []error
	for _, name := range names {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s, err := Parse(name, text)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		scripts = append(scripts, s)
	}
	return scripts, errors.Join(errs...)
}
