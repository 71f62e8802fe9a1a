// SPDX-License-Identifier: Apache-2.0

package fakeistiod

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// judgeCall asks Options.Token about calls of registered services too.
func (s *Server) judgeCall(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if err := s.judge(md); err != nil {
		return nil, err
	}
	return next(ctx, req)
}
