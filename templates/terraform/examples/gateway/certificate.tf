# The certificate of domain_name: an existing certificate, or a new certificate of ACM, proven by a record in an existing zone.

locals {
  # The names are known before the apply, and the records of ACM are not.
  certificate_names = var.certificate_arn == null ? toset([var.domain_name]) : toset([])
  certificate_arn   = var.certificate_arn == null ? aws_acm_certificate_validation.gateway[0].certificate_arn : var.certificate_arn
}

data "aws_route53_zone" "gateway" {
  count = var.zone_name == null ? 0 : 1

  name         = var.zone_name
  private_zone = false
}

resource "aws_acm_certificate" "gateway" {
  count = var.certificate_arn == null ? 1 : 0

  domain_name       = var.domain_name
  validation_method = "DNS"

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_route53_record" "validation" {
  for_each = local.certificate_names

  zone_id         = data.aws_route53_zone.gateway[0].zone_id
  name            = one([for option in aws_acm_certificate.gateway[0].domain_validation_options : option.resource_record_name if option.domain_name == each.value])
  type            = one([for option in aws_acm_certificate.gateway[0].domain_validation_options : option.resource_record_type if option.domain_name == each.value])
  records         = [for option in aws_acm_certificate.gateway[0].domain_validation_options : option.resource_record_value if option.domain_name == each.value]
  ttl             = 300
  allow_overwrite = true
}

resource "aws_acm_certificate_validation" "gateway" {
  count = var.certificate_arn == null ? 1 : 0

  certificate_arn         = aws_acm_certificate.gateway[0].arn
  validation_record_fqdns = [for record in aws_route53_record.validation : record.fqdn]
}

resource "aws_route53_record" "gateway" {
  count = var.zone_name == null ? 0 : 1

  zone_id = data.aws_route53_zone.gateway[0].zone_id
  name    = var.domain_name
  type    = "A"

  alias {
    name                   = aws_lb.gateway.dns_name
    zone_id                = aws_lb.gateway.zone_id
    evaluate_target_health = true
  }
}
