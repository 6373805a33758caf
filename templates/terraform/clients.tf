# Clients use one name. The load balancer passes TLS through to the nodes, whose certificates carry the name.

locals {
  makes_load_balancer = var.existing_load_balancer == null
  load_balancer = local.makes_load_balancer ? {
    dns_name         = aws_lb.clients[0].dns_name
    zone_id          = aws_lb.clients[0].zone_id
    target_group_arn = aws_lb_target_group.clients[0].arn
    } : {
    dns_name         = var.existing_load_balancer.dns_name
    zone_id          = var.existing_load_balancer.zone_id
    target_group_arn = var.existing_load_balancer.target_group_arn
  }
  zone_id = var.existing_zone == null ? aws_route53_zone.clients[0].zone_id : data.aws_route53_zone.existing[0].zone_id
}

resource "aws_lb" "clients" {
  #checkov:skip=CKV_AWS_91:A network load balancer logs TLS listeners only, and this listener is for TCP. VPC flow logs show who connects.
  #checkov:skip=CKV_AWS_150:Deletion protection is on by default. The example turns it off, so `terraform destroy` works.
  count = local.makes_load_balancer ? 1 : 0

  name                             = "${var.name}-clients"
  load_balancer_type               = "network"
  internal                         = true
  subnets                          = var.subnet_ids
  security_groups                  = aws_security_group.clients[*].id
  enable_cross_zone_load_balancing = true
  enable_deletion_protection       = var.deletion_protection
  tags                             = var.tags
}

resource "aws_lb_target_group" "clients" {
  count = local.makes_load_balancer ? 1 : 0

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
  count = local.makes_load_balancer ? 1 : 0

  load_balancer_arn = aws_lb.clients[0].arn
  protocol          = "TCP"
  port              = 4222
  tags              = var.tags

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.clients[0].arn
  }
}

# The zone has exactly the client name, so it takes over no other name in the VPC.
resource "aws_route53_zone" "clients" {
  count = var.existing_zone == null ? 1 : 0

  name    = var.client_dns_name
  comment = "Clients of ${var.name}"
  tags    = var.tags

  vpc {
    vpc_id = var.vpc_id
  }
}

data "aws_route53_zone" "existing" {
  count = var.existing_zone == null ? 0 : 1

  zone_id = var.existing_zone.id

  lifecycle {
    postcondition {
      condition     = endswith(".${var.client_dns_name}", ".${trimsuffix(self.name, ".")}")
      error_message = "client_dns_name is ${var.client_dns_name}, and existing_zone holds names below ${self.name} alone."
    }
  }
}

resource "aws_route53_record" "clients" {
  zone_id = local.zone_id
  name    = var.client_dns_name
  type    = "A"

  alias {
    name                   = local.load_balancer.dns_name
    zone_id                = local.load_balancer.zone_id
    evaluate_target_health = true
  }
}
