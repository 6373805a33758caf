# Clients use one name. The load balancer passes TLS through to the nodes, whose certificates carry the name.

resource "aws_lb" "clients" {
  #checkov:skip=CKV_AWS_91:A network load balancer logs TLS listeners only, and this listener is for TCP. VPC flow logs show who connects.
  #checkov:skip=CKV_AWS_150:Deletion protection is on by default. The example turns it off, so `terraform destroy` works.
  name                             = "${var.name}-clients"
  load_balancer_type               = "network"
  internal                         = true
  subnets                          = var.subnet_ids
  security_groups                  = [aws_security_group.clients.id]
  enable_cross_zone_load_balancing = true
  enable_deletion_protection       = var.deletion_protection
  tags                             = var.tags
}

resource "aws_lb_target_group" "clients" {
  name                 = "${var.name}-clients"
  vpc_id               = var.vpc_id
  target_type          = "instance"
  protocol             = "TCP"
  port                 = 4222
  preserve_client_ip   = true
  deregistration_delay = 120
  tags                 = var.tags

  # The check finds out whether the node listens. A server in lame duck mode stops listening, so it gets no new clients.
  # nats-server logs each check as "[ERR] … TLS handshake error: EOF", and each zone's balancer checks separately. A long
  # interval keeps these lines few. With health_check_type "ELB" the group replaces an unhealthy node together with its
  # streams. Five minutes must pass first, so a restart in lame duck mode or a reboot replaces no node. Ten failed checks are the maximum
  # (https://docs.aws.amazon.com/elasticloadbalancing/latest/network/target-group-health-checks.html).
  health_check {
    protocol            = "TCP"
    port                = "traffic-port"
    interval            = 30
    healthy_threshold   = 2
    unhealthy_threshold = 10
  }
}

resource "aws_lb_listener" "clients" {
  load_balancer_arn = aws_lb.clients.arn
  protocol          = "TCP"
  port              = 4222
  tags              = var.tags

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.clients.arn
  }
}

# The zone has exactly the client name, so it takes over no other name in the VPC.
resource "aws_route53_zone" "clients" {
  name    = var.client_dns_name
  comment = "Clients of ${var.name}"
  tags    = var.tags

  vpc {
    vpc_id = var.vpc_id
  }
}

resource "aws_route53_record" "clients" {
  zone_id = aws_route53_zone.clients.zone_id
  name    = var.client_dns_name
  type    = "A"

  alias {
    name                   = aws_lb.clients.dns_name
    zone_id                = aws_lb.clients.zone_id
    evaluate_target_health = true
  }
}
